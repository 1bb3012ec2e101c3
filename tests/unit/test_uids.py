import uuid

import pytest
from pydicom.uid import UID

from contourcast.imaging.dicom.uids import derived_uid
from contourcast.imaging.errors import InputError


def test_a_derived_uid_is_a_valid_uid_of_a_version_8_uuid() -> None:
    for n in range(200):
        uid = derived_uid("digest", f"slice {n}")
        assert UID(uid).is_valid
        assert len(uid) <= 44
        number = uuid.UUID(int=int(uid.removeprefix("2.25.")))
        assert (number.version, number.variant) == (8, uuid.RFC_4122)


def test_a_derived_uid_follows_from_digest_and_role_alone() -> None:
    assert derived_uid("a", "series") == derived_uid("a", "series")
    uids = {derived_uid(d, r) for d in ("a", "b", "ab") for r in ("", "a", "b", "series")}
    assert len(uids) == 12
    assert derived_uid("ab", "c") != derived_uid("a", "bc")


def test_nothing_follows_from_nothing() -> None:
    with pytest.raises(InputError, match="derived from nothing"):
        derived_uid("", "series")
