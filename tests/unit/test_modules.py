import math

from hypothesis import given
from hypothesis import strategies as st

from contourcast.imaging.dicom.modules import cut, ds_text

DECIMAL_STRINGS = st.from_regex(r"-?[0-9]{0,14}\.?[0-9]{0,14}", fullmatch=True).filter(
    lambda text: len(text) <= 16 and any(c.isdigit() for c in text)
)


@given(DECIMAL_STRINGS)
def test_a_number_that_came_as_decimal_string_goes_back_as_the_very_same(text: str) -> None:
    written = ds_text(float(text))
    assert len(written) <= 16
    assert float(written) == float(text)


@given(st.floats(-1e300, 1e300, allow_subnormal=False))
def test_any_number_fits_and_keeps_the_digits_that_fit(number: float) -> None:
    written = ds_text(number)
    assert len(written) <= 16
    assert math.isclose(float(written), number, rel_tol=1e-8)


@given(st.text(), st.integers(0, 20))
def test_text_is_cut_between_characters_and_is_one_value(text: str, limit: int) -> None:
    short = cut(text.replace("\ud800", ""), limit)
    assert len(short.encode()) <= limit
    assert "\\" not in short
    assert all(ord(c) >= 32 for c in short)
    assert short == short.strip()


def test_text_that_fits_stays() -> None:
    assert cut("Läsion 3 cm", 16) == "Läsion 3 cm"
    assert cut("Läsion", 2) == "L"
