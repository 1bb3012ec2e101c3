"""Courses: which scans belong to which plan, and what only a person can say of that."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Row, select, union_all
from sqlalchemy import literal_column as literal

from contourcast.service.api.asked import caller_of
from contourcast.service.api.conditional import IfMatch, etag, require_unchanged
from contourcast.service.api.context import Context, in_thread
from contourcast.service.api.paging import USUAL, Cursor, Limit, after, lead_on
from contourcast.service.index.tables import course, fraction, propagation, review
from contourcast.service.intake.outcomes import Answer, Question
from contourcast.service.problems import NotFoundError, document_for
from contourcast.service.review.basis import ReasonItem
from contourcast.service.review.history import PassedItem, passed
from contourcast.service.review.numbering import numbers_of
from contourcast.service.review.patient import PatientItem, facts_of, patient_of_scan


class CourseItem(BaseModel):
    """A plan and the fractions that were matched to it; or a scan whose plan is in question."""

    id: str
    patient: str = Field(description="A key that says nothing to a reader.")
    planning_ct: str | None = Field(description="Series Instance UID; null: in question.")
    structures: str | None = Field(description="SOP Instance UID; null: in question.")
    made_at: str
    question: str | None = Field(
        description="patient, planning_ct, structure_set or roi: what a person has to say."
    )


class CoursesAnswer(BaseModel):
    """Courses, newest first, and open questions among them."""

    courses: list[CourseItem]


class RoiItem(BaseModel):
    """A ROI that is carried."""

    number: int
    name: str


class ChoiceItem(BaseModel):
    """A possible answer."""

    value: str
    label: str = Field(description="For the page; may say what the header of a scan says.")


class QuestionItem(BaseModel):
    """What evidence does not answer."""

    question: Question
    why: str
    choices: list[ChoiceItem] = Field(description="None where something has to arrive first.")
    several: bool = Field(description="Whether more than one may be chosen.")
    missing: list[str] = Field(description="UIDs that are referred to, and not here.")


class AnswerItem(BaseModel):
    """What a person said to a question."""

    question: Question
    choice: list[str]
    by: str
    at: str = ""


class FractionItem(BaseModel):
    """A scan of a course."""

    id: str = Field(description="Of the revision of its series.")
    patient: PatientItem | None = Field(description="As the scan itself says.")
    series: str
    acquired_at: str = Field(description="As its machine wrote it: no zone.")
    state: str = Field(description="matched, needs_person, not_ours or superseded.")
    reasons: list[ReasonItem]
    question: QuestionItem | None
    answers: list[AnswerItem] = Field(description="Of persons, in the order of being given.")
    propagations: list[str]


class PriorItem(BaseModel):
    """A contour that a person signed."""

    structures: str
    propagation: str
    decision: str
    method: str
    reviewer: str
    at: str


class CourseDetail(CourseItem):
    """A course with everything that was matched to it."""

    rois: list[RoiItem]
    fractions: list[FractionItem] = Field(description="In the order in which they were taken.")
    priors: list[PriorItem]


class CourseAnswer(BaseModel):
    """A person's answer to a question of matching."""

    model_config = ConfigDict(extra="forbid")

    question: Question
    choice: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=64)
    fraction: str | None = Field(
        default=None, max_length=64, description="Left out: the one whose question this is."
    )


class HistoryAnswer(BaseModel):
    """A course, fraction by fraction."""

    course: str
    patient: str = Field(description="A key that says nothing to a reader.")
    roi: str
    fractions: list[PassedItem]


def routes(context: Context) -> APIRouter:
    """The routes over one application's records."""
    router = APIRouter(tags=["courses"])
    index = context.records.index

    @router.get("/v1/courses")
    async def get_courses(
        request: Request,
        response: Response,
        open_questions: Annotated[
            bool, Query(description="Only scans whose plan is in question.")
        ] = False,
        limit: Limit = USUAL,
        cursor: Cursor = "",
    ) -> CoursesAnswer:
        """Courses, newest first; a scan whose course is not known stands under its own id."""

        def find() -> list[CourseItem]:
            with index.read() as at:
                return _list(at, after(cursor, str, str), limit + 1, questions=open_questions)

        found = await in_thread(find)
        if len(found) > limit:
            lead_on(request, response, found[limit - 1].made_at, found[limit - 1].id)
        return CoursesAnswer(courses=found[:limit])

    @router.get("/v1/courses/{course_id}", responses=document_for(404))
    async def get_course(course_id: str, request: Request, response: Response) -> CourseDetail:
        """One course: its fractions, why each belongs to it, and what is asked."""
        found = await in_thread(read, course_id)
        response.headers["ETag"] = etag(found)
        return found.model_copy(
            update={"fractions": [_for_caller(context, request, each) for each in found.fractions]}
        )

    @router.get("/v1/courses/{course_id}/history", responses=document_for(404))
    async def get_history(course_id: str) -> HistoryAnswer:
        """Volumes, shifts, verdicts and decisions of a course, in the order of being taken."""

        def find() -> HistoryAnswer:
            with index.read() as at:
                row = at.execute(select(course).where(course.c.id == course_id)).first()
                if row is None:
                    raise NotFoundError("no course has that id", remedy="see /v1/courses")
                numbers = numbers_of(
                    at, {course_id}, repeat_minutes=context.fractions.rules.repeat_minutes
                )
                return HistoryAnswer(
                    course=course_id,
                    patient=row.patient_key,
                    roi=", ".join(roi["name"] for roi in row.rois_json),
                    fractions=passed(at, course_id, numbers),
                )

        return await in_thread(find)

    @router.patch("/v1/courses/{course_id}", responses=document_for(404, 409, 412))
    async def answer_question(
        course_id: str,
        answer: CourseAnswer,
        request: Request,
        if_match: IfMatch = None,
    ) -> FractionItem:
        """Answer an open question; the scan is matched again at once."""
        caller = caller_of(request)
        seen = await in_thread(read, course_id)
        require_unchanged(if_match, seen)
        asked = answer.fraction or course_id
        if asked not in {each.id for each in seen.fractions}:
            raise NotFoundError(
                "the course has no such fraction", remedy=f"see /v1/courses/{course_id}"
            )
        given = Answer(question=answer.question, choice=tuple(answer.choice))
        await in_thread(lambda: context.fractions.answer(asked, given, by=caller.name))
        return _for_caller(context, request, await in_thread(_fraction_of, context, asked))

    def read(course_id: str) -> CourseDetail:
        with index.read() as at:
            row = at.execute(select(course).where(course.c.id == course_id)).first()
            if row is not None:
                return _course(at, row)
            alone = at.execute(
                select(fraction).where(
                    fraction.c.revision_id == course_id, fraction.c.course_id.is_(None)
                )
            ).first()
            if alone is not None:
                return _unmatched(at, alone)
        raise NotFoundError("no course has that id", remedy="see /v1/courses")

    return router


def _list(
    at: Connection, last: tuple[Any, ...] | None, limit: int, *, questions: bool
) -> list[CourseItem]:
    asked = select(
        fraction.c.revision_id.label("id"),
        fraction.c.patient_key,
        literal("NULL").label("planning_series_uid"),
        literal("NULL").label("structures_uid"),
        fraction.c.made_at,
        fraction.c.question_json["question"].as_string().label("question"),
    ).where(fraction.c.state == "needs_person")
    known = select(
        course.c.id,
        course.c.patient_key,
        course.c.planning_series_uid,
        course.c.structures_uid,
        course.c.made_at,
        literal("NULL").label("question"),
    )
    every = (asked if questions else union_all(known, asked)).subquery()
    query = select(every).order_by(every.c.made_at.desc(), every.c.id.desc()).limit(limit)
    if last is not None:
        made_at, item = last
        query = query.where(
            (every.c.made_at < made_at) | ((every.c.made_at == made_at) & (every.c.id < item))
        )
    return [
        CourseItem(
            id=row.id,
            patient=row.patient_key,
            planning_ct=row.planning_series_uid,
            structures=row.structures_uid,
            made_at=row.made_at,
            question=row.question,
        )
        for row in at.execute(query)
    ]


def _course(at: Connection, row: Row[Any]) -> CourseDetail:
    fractions = at.execute(
        select(fraction)
        .where(fraction.c.course_id == row.id)
        .order_by(fraction.c.acquired_at, fraction.c.revision_id)
    ).all()
    facts = facts_of(at, {each.series_uid for each in fractions})
    signed = at.execute(
        select(review)
        .where(review.c.course_id == row.id, review.c.structures_uid.is_not(None))
        .order_by(review.c.number)
    ).all()
    return CourseDetail(
        id=row.id,
        patient=row.patient_key,
        planning_ct=row.planning_series_uid,
        structures=row.structures_uid,
        made_at=row.made_at,
        question=None,
        rois=[RoiItem.model_validate(roi) for roi in row.rois_json],
        fractions=[_fraction(at, each, facts) for each in fractions],
        priors=[
            PriorItem(
                structures=each.structures_uid,
                propagation=each.propagation,
                decision=each.decision,
                method=each.method,
                reviewer=each.reviewer,
                at=each.at,
            )
            for each in signed
        ],
    )


def _unmatched(at: Connection, row: Row[Any]) -> CourseDetail:
    return CourseDetail(
        id=row.revision_id,
        patient=row.patient_key,
        planning_ct=None,
        structures=None,
        made_at=row.made_at,
        question=row.question_json.get("question"),
        rois=[],
        fractions=[_fraction(at, row, facts_of(at, {row.series_uid}))],
        priors=[],
    )


def _for_caller(context: Context, request: Request, told: FractionItem) -> FractionItem:
    """Without the patient's name, where the caller is not told that."""
    roles = caller_of(request).roles
    if told.patient is None or context.settings.access.shows_names(roles):
        return told
    return told.model_copy(update={"patient": told.patient.without_name()})


def _fraction_of(context: Context, revision_id: str) -> FractionItem:
    with context.records.index.read() as at:
        row = at.execute(select(fraction).where(fraction.c.revision_id == revision_id)).one()
        return _fraction(at, row, facts_of(at, {row.series_uid}))


def _fraction(at: Connection, row: Row[Any], facts: dict[str, dict[str, Any]]) -> FractionItem:
    drawn = at.execute(
        select(propagation.c.id)
        .where(propagation.c.revision_id == row.revision_id)
        .order_by(propagation.c.number)
    ).scalars()
    return FractionItem(
        id=row.revision_id,
        patient=patient_of_scan(row.patient_key, facts.get(row.series_uid)),
        series=row.series_uid,
        acquired_at=row.acquired_at,
        state=row.state,
        reasons=[ReasonItem.model_validate(each) for each in row.reasons_json],
        question=QuestionItem.model_validate(row.question_json) if row.question_json else None,
        answers=[AnswerItem.model_validate(each) for each in row.answers_json],
        propagations=list(drawn),
    )
