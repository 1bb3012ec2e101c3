from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contourcast.service.intake.completeness import (
    Arrivals,
    Association,
    Incomplete,
    InstanceFacts,
    Look,
    Revision,
    Waiting,
    Whole,
    find_gaps,
    judge,
)
from contourcast.service.problems import ConflictError

START = datetime(2026, 1, 3, 8, 0, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def instance(k: int, *, series: str = "1.2", at: datetime = START) -> InstanceFacts:
    """Slice k of a series with 2 mm steps."""
    return InstanceFacts(sop_uid=f"{series}.{k}", digest=f"d{k}", position_mm=2.0 * k - 20.0, at=at)


def series(count: int, *, without: tuple[int, ...] = ()) -> tuple[InstanceFacts, ...]:
    return tuple(instance(k) for k in range(count) if k not in without)


def arrivals(
    instances: tuple[InstanceFacts, ...],
    *,
    association: Association = "none",
    announced: int | None = None,
    looks: tuple[Look, ...] = (),
    pulled_again: bool = False,
) -> Arrivals:
    return Arrivals(
        series_uid="1.2",
        instances=instances,
        association=association,
        announced=announced,
        looks=looks,
        pulled_again=pulled_again,
    )


# Rule 1: the sender said so


def test_a_series_is_whole_when_the_announced_number_is_here() -> None:
    found = judge(arrivals(series(8), announced=8, association="open"), START)
    assert isinstance(found, Whole)
    assert found.reason == "the sender said 8 instances and 8 are here"


def test_an_announced_number_that_is_not_reached_is_waited_for_however_quiet_it_is() -> None:
    found = judge(arrivals(series(7), announced=8, association="released"), after(599))
    assert found == Waiting(until=after(600), reason="the sender said 8 instances and 7 are here")
    late = judge(arrivals(series(7), announced=8, association="released"), after(600))
    assert isinstance(late, Incomplete)
    assert late.gaps == ()
    assert late.reason == (
        "the sender said 8 instances and 7 are here, and nothing came for 10 minutes"
    )


def test_repetitions_do_not_count_towards_the_announced_number() -> None:
    assert isinstance(judge(arrivals(series(4) * 2, announced=8), after(20)), Waiting)


# Rules 2 and 3: a run without gap, and silence


@pytest.mark.parametrize(("association", "seconds"), [("released", 5.0), ("none", 15.0)])
def test_a_run_without_gap_is_whole_once_it_is_quiet(
    association: Association, seconds: float
) -> None:
    just_before = judge(arrivals(series(8), association=association), after(seconds - 0.001))
    assert isinstance(just_before, Waiting)
    assert just_before.until == after(seconds)
    found = judge(arrivals(series(8), association=association), after(seconds))
    assert isinstance(found, Whole)
    assert f"{seconds:.0f} s" in found.reason


def test_an_open_association_is_waited_for() -> None:
    assert isinstance(judge(arrivals(series(8), association="open"), after(599)), Waiting)
    assert isinstance(judge(arrivals(series(8), association="open"), after(600)), Whole)


def test_silence_counts_from_the_last_arrival() -> None:
    slices = (*series(7), instance(7, at=after(10)))
    found = judge(arrivals(slices), after(24))
    assert isinstance(found, Waiting)
    assert found.until == after(25)


# Rule 4: the archive has no more


def looks(*found: tuple[float, int]) -> tuple[Look, ...]:
    return tuple(Look(at=after(seconds), instances=n) for seconds, n in found)


def test_two_looks_into_the_archive_that_agree_are_enough() -> None:
    seen = looks((0, 8), (15, 8))
    found = judge(arrivals(series(8), association="open", looks=seen), after(15))
    assert isinstance(found, Whole)
    assert found.reason == "no gap, and two looks into the archive found 8 instances"


@pytest.mark.parametrize(
    "seen", [looks((0, 8), (14, 8)), looks((0, 8), (10, 7), (20, 8)), looks((20, 8)), ()]
)
def test_looks_that_are_too_near_or_disagree_are_not(seen: tuple[Look, ...]) -> None:
    found = judge(arrivals(series(8), association="open", looks=seen), after(30))
    assert isinstance(found, Waiting)


def test_looks_are_asked_in_the_order_of_their_times() -> None:
    seen = looks((20, 8), (0, 8), (10, 8))
    assert isinstance(judge(arrivals(series(8), association="open", looks=seen), after(20)), Whole)


def test_an_archive_that_has_more_is_waited_for() -> None:
    found = judge(arrivals(series(8), looks=looks((0, 9), (20, 9))), after(60))
    assert found == Waiting(until=after(600), reason="the archive has 9 instances and 8 are here")


# Gaps


def test_a_gap_is_waited_for_then_named_and_pulled_once() -> None:
    slices = series(9, without=(4,))
    assert isinstance(judge(arrivals(slices, association="released"), after(599)), Waiting)
    found = judge(arrivals(slices, association="released"), after(660))
    assert isinstance(found, Incomplete)
    assert [(g.below_sop_uid, g.above_sop_uid, g.missing) for g in found.gaps] == [
        ("1.2.3", "1.2.5", 1)
    ]
    assert "1 gap, the widest of 4.0 mm where most are 2.0 mm" in found.reason
    assert "nothing came for 10 minutes" in found.reason
    later = judge(arrivals(slices, association="released"), after(3600))
    assert later == found, "another reason every minute would be told every minute"
    assert found.pull_again
    again = judge(arrivals(slices, pulled_again=True), after(660))
    assert isinstance(again, Incomplete)
    assert not again.pull_again


def test_a_gap_is_what_the_reader_calls_one() -> None:
    """At 1.5 times the median it passes, above it does not."""
    places = [0.0, 2.0, 4.0, 6.0]
    for step, expected in ((2.99, 0), (3.01, 1)):
        slices = [
            InstanceFacts(sop_uid=str(k), digest="", position_mm=z, at=START)
            for k, z in enumerate([*places, 6.0 + step])
        ]
        assert len(find_gaps(slices)) == expected, step


def test_positions_written_with_few_digits_make_no_gap() -> None:
    slices = tuple(
        replace(i, position_mm=round((i.position_mm or 0) * 1.2345, 1)) for i in series(30)
    )
    assert find_gaps(slices) == ()


def test_a_second_slice_at_one_place_fills_no_gap_and_makes_none() -> None:
    slices = (*series(5), replace(instance(2), sop_uid="1.2.99"))
    assert find_gaps(slices) == ()
    wide = (*series(9, without=(4,)), replace(instance(3), sop_uid="1.2.99"))
    assert [g.missing for g in find_gaps(wide)] == [1]


def test_several_missing_slices_are_counted() -> None:
    assert [g.missing for g in find_gaps(series(12, without=(4, 5, 6)))] == [3]


def test_a_scout_lies_beside_the_run_and_in_the_revision() -> None:
    scout = InstanceFacts(sop_uid="1.2.77", digest="s", position_mm=500.0, at=START, scout=True)
    assert find_gaps((scout, *series(8))) == ()
    found = judge(arrivals((scout, *series(8)), association="released"), after(5))
    assert isinstance(found, Whole)
    assert found.revision.instances[-1] == ("1.2.77", "s")


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        (series(1), "fewer than two slices make no run"),
        ((*series(4), replace(instance(4), position_mm=None)), "do not say where they lie"),
    ],
)
def test_what_cannot_be_a_run_is_incomplete_in_the_end(
    instances: tuple[InstanceFacts, ...], expected: str
) -> None:
    assert isinstance(judge(arrivals(instances), after(100)), Waiting)
    found = judge(arrivals(instances), after(600))
    assert isinstance(found, Incomplete)
    assert expected in found.reason


# Revisions


def test_a_late_slice_makes_another_revision_and_leaves_the_first() -> None:
    first = judge(arrivals(series(8), association="released"), after(5))
    late = (*series(8), instance(8, at=after(60)))
    assert isinstance(judge(arrivals(late, association="released"), after(61)), Waiting)
    second = judge(arrivals(late, association="released"), after(65))
    assert isinstance(first, Whole)
    assert isinstance(second, Whole)
    assert first.revision.id != second.revision.id
    assert second.revision.instances[:-1] == first.revision.instances


def test_other_pixels_or_another_series_are_another_revision() -> None:
    original = Revision.of("1.2", series(4)).id
    changed = (replace(instance(0), digest="other"), *series(4)[1:])
    assert Revision.of("1.2", changed).id != original
    assert Revision.of("1.3", series(4)).id != original


def test_two_pictures_of_one_instance_are_refused() -> None:
    with pytest.raises(ConflictError, match="two pictures") as refused:
        judge(arrivals((*series(4), replace(instance(2), digest="other"))), after(60))
    assert refused.value.uid == "1.2.2"


MANY = st.integers(2, 20)


@given(data=st.data(), count=MANY)
def test_any_order_and_any_repetition_of_arrivals_give_the_same_answer(
    data: st.DataObject, count: int
) -> None:
    slices = series(count)
    repeated = data.draw(st.lists(st.sampled_from(slices), max_size=30))
    shuffled = tuple(data.draw(st.permutations([*slices, *repeated])))
    now = after(data.draw(st.sampled_from([0, 4, 5, 14, 15, 599, 600, 10_000])))
    known = data.draw(st.sampled_from([None, count - 1, count, count + 1]))
    how: Association = data.draw(st.sampled_from(["none", "open", "released"]))
    expected = judge(arrivals(slices, announced=known, association=how), now)
    assert judge(arrivals(shuffled, announced=known, association=how), now) == expected


@given(data=st.data(), counts=st.tuples(MANY, MANY))
def test_any_interleaving_of_two_series_leaves_both_as_if_alone(
    data: st.DataObject, counts: tuple[int, int]
) -> None:
    both = [(uid, k) for uid, n in zip(("1.2", "1.3"), counts, strict=True) for k in range(n)]
    stream = [
        (uid, instance(k, series=uid, at=after(0.01 * n)))
        for n, (uid, k) in enumerate(data.draw(st.permutations(both)))
    ]
    for uid, count in zip(("1.2", "1.3"), counts, strict=True):
        came = tuple(i for of, i in stream if of == uid)
        found = judge(Arrivals(series_uid=uid, instances=came, association="released"), after(60))
        alone = Revision.of(uid, [instance(k, series=uid) for k in range(count)])
        assert isinstance(found, Whole)
        assert found.revision == alone


@given(data=st.data(), count=st.integers(5, 20))
def test_a_slice_missing_between_others_is_always_missed(data: st.DataObject, count: int) -> None:
    """From five slices on: of the two distances 2 and 4 mm, none is 1.5 times the median."""
    gone = data.draw(st.integers(1, count - 2))
    slices = series(count, without=(gone,))
    assert isinstance(judge(arrivals(slices), after(599)), Waiting)
    found = judge(arrivals(slices), after(600))
    assert isinstance(found, Incomplete)
    assert [(g.below_sop_uid, g.above_sop_uid) for g in found.gaps] == [
        (f"1.2.{gone - 1}", f"1.2.{gone + 1}")
    ]


@given(data=st.data(), count=MANY)
def test_an_answer_does_not_change_before_the_time_that_it_names(
    data: st.DataObject, count: int
) -> None:
    known = arrivals(series(count), association=data.draw(st.sampled_from(["none", "released"])))
    first = judge(known, START)
    assert isinstance(first, Waiting)
    span = (first.until - START) / timedelta(seconds=1)
    within = data.draw(st.floats(0, span, exclude_max=True))
    assert judge(known, after(within)) == first or after(within) >= first.until
    assert not isinstance(judge(known, first.until), Waiting)
