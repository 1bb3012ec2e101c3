"""Every table, on one page.

Times are ISO 8601 in UTC, so that they sort as text; what orders anything is a number that the
database gives. `*_json` columns hold JSON. Who a patient is stands in the facts of `series`
alone; everything else knows a patient by a key.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)
from sqlalchemy.types import JSON

SCHEMA_VERSION: Final = 1

metadata = MetaData()
# SQLite counts up an INTEGER PRIMARY KEY and no other.
Serial = BigInteger().with_variant(Integer(), "sqlite")

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

# What came in

instance = Table(
    "instance",
    metadata,
    Column("sop_uid", String, primary_key=True),
    Column("sop_class_uid", String, nullable=False),
    Column("modality", String, nullable=False),
    Column("series_uid", String, nullable=False, index=True),
    Column("study_uid", String, nullable=False),
    Column("frame_of_reference", String, nullable=False),
    Column("file_digest", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("plane_json", JSON, nullable=False),  # position and orientation of an image, else {}
    Index("instance_by_modality", "modality", "sop_uid"),
)

series = Table(
    "series",
    metadata,
    Column("uid", String, primary_key=True),
    Column("study_uid", String, nullable=False),
    Column("modality", String, nullable=False, index=True),
    Column("patient_key", String, nullable=False, index=True),
    Column("facts_json", JSON, nullable=False),  # of the header: maker, description, times …
    Column("door", String, nullable=False),  # see archive.Sent
    Column("sender", String, nullable=False),  # AE title, where there is one
    Column("expected_instances", Integer),  # what the sender said is all of it
    Column("counted_json", JSON, nullable=False),  # what an archive counted, and when
    Column("released_at", String),  # its association ended
    Column("last_arrival_at", String, nullable=False),
    Column("pulled_again_at", String),  # once, when it had a gap
    Column("state", String, nullable=False),  # arriving | whole | incomplete | dismissed
    Column("reason", String, nullable=False),
    Column("revision", String),  # the newest
    Index("series_by_state", "state", "last_arrival_at"),
)

arrival = Table(
    "arrival",
    metadata,
    Column("number", Serial, primary_key=True, autoincrement=True),
    Column("sop_uid", String, nullable=False),
    Column("series_uid", String, nullable=False),
    Column("file_digest", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("door", String, nullable=False),
    Column("sender", String, nullable=False),
    Column("at", String, nullable=False),
    Index("arrival_by_series", "series_uid", "number"),  # what came of a series since a number
    sqlite_autoincrement=True,
)

revision = Table(
    "revision",
    metadata,
    Column("id", String, primary_key=True),  # digest of its members
    Column("series_uid", String, nullable=False, index=True),
    Column("number", Integer, nullable=False),  # 1, 2 … within the series
    Column("members_json", JSON, nullable=False),  # [SOP UID, file digest] in slice order
    Column("reason", String, nullable=False),  # why it is whole
    Column("made_at", String, nullable=False),
    Column("matched", Integer, nullable=False),  # 1 once matching has looked at it
    UniqueConstraint("series_uid", "number"),
)

# What belongs to what

course = Table(
    "course",
    metadata,
    Column("id", String, primary_key=True),  # of patient, planning CT and structure set
    Column("patient_key", String, nullable=False, index=True),
    Column("planning_series_uid", String, nullable=False),
    Column("structures_uid", String, nullable=False),
    Column("rois_json", JSON, nullable=False),
    Column("made_at", String, nullable=False),
)

fraction = Table(
    "fraction",
    metadata,
    Column("revision_id", String, primary_key=True),
    Column("series_uid", String, nullable=False, index=True),
    Column("patient_key", String, nullable=False, index=True),
    Column("course_id", String, index=True),
    Column("acquired_at", String, nullable=False),
    Column(
        "state", String, nullable=False, index=True
    ),  # matched | needs_person | not_ours | superseded
    Column("reasons_json", JSON, nullable=False),
    Column("question_json", JSON, nullable=False),  # {} when there is none
    Column("answers_json", JSON, nullable=False),  # of a person
    Column("looked_at", BigInteger, nullable=False),  # number of the last arrival that was known
    Column("made_at", String, nullable=False),
)

# What was promised

propagation = Table(
    "propagation",
    metadata,
    Column("id", String, primary_key=True),  # digest of the order
    Column("number", Serial, nullable=False, unique=True),
    Column("order_json", JSON, nullable=False),
    Column("made_at", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("figures_json", JSON, nullable=False),
    Column("problem_json", JSON, nullable=False),
    Column("files_json", JSON, nullable=False),
    Column("course_id", String, index=True),
    Column("revision_id", String, index=True),
    Column("patient_key", String, nullable=False, index=True),
    Column("cbct_series_uid", String, nullable=False, index=True),
    Column("acquired_at", String, nullable=False),
    Column("verdict", String, nullable=False),  # empty until it is known
    Column("priority", Integer, nullable=False),  # 1 today's fraction … 9 evaluation
    Column("cohort_id", String, index=True),
    Column("superseded_by", String),
    Column("asked_by", String, nullable=False),
    Column("ended", Integer, nullable=False),  # 1: the engine is through with it
    Index("propagation_unfinished", "ended", "priority", "number"),
    # All that the order of triage asks for, so that no order of a propagation, with its hundreds
    # of digests, is read for it.
    Index(
        "propagation_triage",
        "state",
        "verdict",
        "made_at",
        "id",
        "course_id",
        "cbct_series_uid",
    ),
)

asked = Table(
    "asked",
    metadata,
    Column("propagation", String, primary_key=True),
    Column("caller", String, primary_key=True),  # as `Caller.name`
)

sent = Table(
    "sent",
    metadata,
    Column("series_uid", String, primary_key=True),
    Column("caller", String, primary_key=True),
)

event = Table(
    "event",
    metadata,
    Column("propagation", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", String, nullable=False),
    Column("state", String, nullable=False),
    Column("sentence", String, nullable=False),
    Column("done", Float, nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("executor", String, primary_key=True),
    Column("queues", String, nullable=False),
    Column("seen_s", Float, nullable=False),  # by the database's clock
)

review = Table(
    "review",
    metadata,
    Column("number", Serial, primary_key=True, autoincrement=True),
    Column("propagation", String, nullable=False, index=True),
    Column("course_id", String, index=True),
    Column("acquired_at", String, nullable=False),
    Column("decision", String, nullable=False),  # approved | edited | rejected
    Column("method", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("reviewer", String, nullable=False),
    Column("at", String, nullable=False),
    Column("structures_uid", String),  # of the signed set
    Column("registration_uid", String),  # of the one that brings it home to the planning CT
    Column("figures_json", JSON, nullable=False),
    sqlite_autoincrement=True,
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", String, primary_key=True),  # digest of what goes where
    Column("number", Serial, nullable=False, unique=True),
    Column("propagation", String, nullable=False, index=True),
    Column("destination", String, nullable=False),
    Column("objects_json", JSON, nullable=False),  # [{name, key, sop_class_uid, sop_uid, digest}]
    Column("state", String, nullable=False),  # waiting | delivered | dead
    Column("attempts", Integer, nullable=False),
    Column("made_at", String, nullable=False),
    Column("next_at", String, nullable=False),
    Column("confirm_at", String),  # when the destination is asked whether it is really there
    Column("receipt_json", JSON, nullable=False),
    Column("problem_json", JSON, nullable=False),
    Index("delivery_due", "state", "next_at"),
)

# What the review page shows, and who is at it

page = Table(
    "page",
    metadata,
    Column("propagation", String, primary_key=True),
    Column("structures_digest", String, nullable=False),  # of the set that it was made from
    Column("content_digest", String, nullable=False),  # of contours and comparisons, derived
)

volume = Table(
    "volume",
    metadata,
    Column("propagation", String, primary_key=True),
    Column("digest", String, primary_key=True, index=True),  # SHA-256 of the voxels, derived
    Column("role", String, nullable=False),  # cbct | planning | adjusted
    Column("image_json", JSON, nullable=False),  # where its voxels lie, as the page is told
    Column("matrix_json", JSON, nullable=False),  # planning_from_cbct of a resampled one, else []
)

draft = Table(
    "draft",
    metadata,
    Column("propagation", String, primary_key=True),
    Column("method", String, nullable=False),  # whose contour it began from
    Column("slices_json", JSON, nullable=False),  # of edited slices alone
    Column("seconds", Float, nullable=False),
    Column("saved_at", String, nullable=False),
    Column("reviewer", String, nullable=False),
    Column("digest", String, nullable=False),
)

presence = Table(
    "presence",
    metadata,
    Column("propagation", String, primary_key=True),
    Column("who", String, primary_key=True),
    Column("seen_at", String, nullable=False, index=True),
)

notice = Table(
    "notice",
    metadata,
    Column("number", Serial, primary_key=True, autoincrement=True),
    Column("at", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("subject", String, nullable=False),  # a UID or an id, never a name
    Column("body_json", JSON, nullable=False),
    sqlite_autoincrement=True,
)

cohort = Table(
    "cohort",
    metadata,
    Column("id", String, primary_key=True),
    Column("made_at", String, nullable=False),
    Column("plan_json", JSON, nullable=False),
)

# Where we are in somebody else's list

cursor = Table(
    "cursor",
    metadata,
    Column("name", String, primary_key=True),
    Column("value_json", JSON, nullable=False),
)

# Who may

api_key = Table(
    "api_key",
    metadata,
    Column("id", String, primary_key=True),
    Column("digest", String, nullable=False, unique=True),  # SHA-256 of the key
    Column("label", String, nullable=False),
    Column("roles_json", JSON, nullable=False),
    Column("made_at", String, nullable=False),
    Column("expires_at", String),
    Column("last_used_at", String),
    Column("revoked_at", String),
)

account = Table(
    "account",
    metadata,
    Column("name", String, primary_key=True),
    Column("password_hash", String, nullable=False),  # argon2id
    Column("roles_json", JSON, nullable=False),
    Column("made_at", String, nullable=False),
    Column("disabled_at", String),
    Column("failures", Integer, nullable=False),
    Column("locked_until", String),
)

session = Table(
    "session",
    metadata,
    Column("digest", String, primary_key=True),  # SHA-256 of the cookie
    Column("account", String, nullable=False),
    Column("roles_json", JSON, nullable=False),
    Column("csrf_digest", String, nullable=False),
    Column("made_at", String, nullable=False),
    Column("expires_at", String, nullable=False),
    Column("proven_at", String, nullable=False),  # when the credential was shown to sign
)

audit = Table(
    "audit",
    metadata,
    Column("number", Serial, primary_key=True, autoincrement=False),
    Column("at", String, nullable=False),
    Column("row_json", JSON, nullable=False),  # who, role, from where, what, which, outcome
    Column("previous_digest", String, nullable=False),
    Column("digest", String, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", String, primary_key=True),
    Column("caller", String, primary_key=True),
    Column("request_digest", String, nullable=False),
    Column("answer_json", JSON, nullable=False),
    Column("at", String, nullable=False),
)
