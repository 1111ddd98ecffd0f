"""Label allocation: every label has one use, and more labels never mean fewer for the teacher."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d.errors import InvalidPlan
from s2d.plan.allocation import MIN_LABELS, MIN_STUDENT_RL, allocate
from s2d.plan.request import MAX_LABELS, LabelOverrides

budgets = st.integers(MIN_LABELS, 30_000) | st.integers(MIN_LABELS, MAX_LABELS - 1)


@given(budgets, st.sampled_from([None, True, False]))
def test_every_label_has_one_use_and_each_use_has_labels(labeled: int, student_rl: bool | None) -> None:
    labels = allocate(labeled, student_rl=student_rl).labels
    assert labels.total == labeled
    assert labels.teacher_rl >= labels.student_rl
    assert labels.validation >= 2
    assert labels.test >= 1
    assert labels.student_rl == 0 or student_rl or labels.student_rl >= MIN_STUDENT_RL


@given(budgets, st.sampled_from([None, True, False]))
def test_one_more_label_never_takes_one_from_the_teacher(labeled: int, student_rl: bool | None) -> None:
    fewer, more = (allocate(n, student_rl=student_rl).labels for n in (labeled, labeled + 1))
    assert more.teacher_rl >= fewer.teacher_rl


def test_no_step_down_anywhere_in_the_first_six_thousand() -> None:
    shares = [allocate(n).labels.teacher_rl for n in range(MIN_LABELS, 6000)]
    assert shares == sorted(shares)


@given(
    st.integers(MIN_LABELS, 5000),
    st.fixed_dictionaries(
        {},
        optional={
            "teacher_rl": st.integers(1, 5000),
            "student_rl": st.integers(0, 5000),
            "validation": st.integers(2, 5000),
            "test": st.integers(1, 5000),
        },
    ),
)
def test_what_is_asked_for_is_given_or_refused(labeled: int, wish: dict[str, int]) -> None:
    try:
        labels = allocate(labeled, LabelOverrides(**wish)).labels
    except InvalidPlan:
        return
    assert {name: getattr(labels, name) for name in wish} == wish
    assert labels.total <= labeled
    assert labels.teacher_rl >= 1


@pytest.mark.parametrize("labeled", [-5, 0, 1, MIN_LABELS - 1, MAX_LABELS + 1])
def test_absurd_budgets_are_refused(labeled: int) -> None:
    with pytest.raises(InvalidPlan) as caught:
        allocate(labeled)
    assert str(labeled) in caught.value.message.replace(",", "")


def test_a_small_budget_has_no_stage_3_and_says_so() -> None:
    result = allocate(60)
    assert result.labels.student_rl == 0
    assert "no_student_rl" in {warning.code for warning in result.warnings}
    assert allocate(60, student_rl=True).labels.student_rl > 0


def test_four_fixed_numbers_may_be_below_the_minimum_and_leave_labels_unused() -> None:
    result = allocate(12, LabelOverrides(teacher_rl=4, student_rl=2, validation=2, test=2))
    assert result.labels.total == 10
    assert "unused_labels" in {warning.code for warning in result.warnings}
