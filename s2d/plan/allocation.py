"""How many labels each use gets.

The rule: a fifth of the labels (at most 1,000) tests, a tenth (at most 256) validates, and of the rest 65 % train the
teacher and 35 % are held out for the student. Stage 3 is left out when its share would be under `MIN_STUDENT_RL`; those
labels then test. The teacher's share never falls when the budget grows.
"""

from __future__ import annotations

from dataclasses import dataclass

from s2d.errors import InvalidPlan
from s2d.plan.document import LabelAllocation, Warning_
from s2d.plan.request import MAX_LABELS, LabelOverrides

MIN_LABELS = 16
MIN_STUDENT_RL = 32
MIN_VALIDATION = 2
MAX_VALIDATION = 256
MAX_TEST = 1000
TEACHER_PERCENT = 65
#: The least rest of which the student's share reaches `MIN_STUDENT_RL`.
STAGE_3_FROM = -(-MIN_STUDENT_RL * 100 // (100 - TEACHER_PERCENT))
#: Fewer validation problems than this leave C1 with an interval wider than most gains.
FEW_VALIDATION = 64


@dataclass(frozen=True)
class Allocation:
    """Labels per use, with what a person should know about the choice."""

    labels: LabelAllocation
    why_teacher: str
    why_student: str
    warnings: tuple[Warning_, ...]


def allocate(labeled: int, wish: LabelOverrides | None = None, student_rl: bool | None = None) -> Allocation:
    """Share out `labeled` labels; `wish` fixes any of the four, `student_rl` forces stage 3 in or out.

    Raises:
        InvalidPlan: fewer than `MIN_LABELS` or more than `MAX_LABELS` labels, or wishes that do not fit.
    """
    wish = wish or LabelOverrides()
    _check(labeled, wish)
    validation = _given(wish.validation, max(MIN_VALIDATION, min(MAX_VALIDATION, labeled // 10)))
    # The offset keeps both divisions from stepping at the same budget: the rest then never shrinks.
    test = _given(wish.test, min(MAX_TEST, (labeled + 2) // 5))
    rest = labeled - validation - test
    if rest < 1:
        raise _does_not_fit(labeled, wish)
    teacher, student, spare = _share(rest, wish, student_rl)
    if min(teacher - 1, student, spare) < 0 or (student_rl and student < 1):
        raise _does_not_fit(labeled, wish)
    if wish.test is None:
        test, spare = test + spare, 0
    elif wish.validation is None:
        validation, spare = validation + spare, 0
    labels = LabelAllocation(teacher_rl=teacher, student_rl=student, validation=validation, test=test)
    return Allocation(
        labels, _why_teacher(labels, wish), _why_student(labels, wish), _warnings(labels, spare, student_rl)
    )


def _given(wish: int | None, default: int) -> int:
    return default if wish is None else wish


def _check(labeled: int, wish: LabelOverrides) -> None:
    fixed = sum(value for value in wish.model_dump().values() if value is not None)
    if labeled > MAX_LABELS:
        raise InvalidPlan(
            f"{labeled:,} labels are more than the {MAX_LABELS:,} that one plan can hold.", param="labeled_budget"
        )
    if fixed > labeled:
        raise _does_not_fit(labeled, wish)
    if labeled < MIN_LABELS and None in wish.model_dump().values():
        raise InvalidPlan(
            f"{labeled} labels are too few to train on, to validate and to test: give at least {MIN_LABELS}, or fix "
            "all four numbers under `labels`.",
            param="labeled_budget",
        )


def _does_not_fit(labeled: int, wish: LabelOverrides) -> InvalidPlan:
    asked = ", ".join(f"{name} {value}" for name, value in wish.model_dump(exclude_none=True).items())
    return InvalidPlan(
        f"The labels asked for ({asked or 'none'}) do not fit in {labeled} labels with something left for each use: "
        "lower them or give more labels.",
        param="labels",
    )


def _share(rest: int, wish: LabelOverrides, student_rl: bool | None) -> tuple[int, int, int]:
    """(teacher, student, spare) of the labels that neither validate nor test."""
    if wish.teacher_rl is not None and wish.student_rl is not None:
        return wish.teacher_rl, wish.student_rl, rest - wish.teacher_rl - wish.student_rl
    if wish.student_rl is not None:
        return rest - wish.student_rl, wish.student_rl, 0
    if wish.teacher_rl is not None:
        left = rest - wish.teacher_rl
        wanted = student_rl or (student_rl is None and left >= MIN_STUDENT_RL)
        return (wish.teacher_rl, left, 0) if wanted else (wish.teacher_rl, 0, left)
    if student_rl is False:
        return rest, 0, 0
    teacher = -(-TEACHER_PERCENT * rest // 100)
    if student_rl or rest >= STAGE_3_FROM:
        return teacher, rest - teacher, 0
    # Just under stage 3 the teacher may not have more labels than just above it.
    teacher = min(rest, -(-TEACHER_PERCENT * STAGE_3_FROM // 100))
    return teacher, 0, rest - teacher


def _why_teacher(labels: LabelAllocation, wish: LabelOverrides) -> str:
    if wish.teacher_rl is not None:
        return f"{labels.teacher_rl:,} labels, as asked."
    share = 100 * labels.teacher_rl / labels.total
    return (
        f"{labels.teacher_rl:,} of {labels.total:,} labels ({share:.0f} %) train the teacher: a sparse reward pays "
        "most on the stronger model."
    )


def _why_student(labels: LabelAllocation, wish: LabelOverrides) -> str:
    if not labels.student_rl:
        return "No label is held out for the student."
    asked = ", as asked" if wish.student_rl is not None else ""
    return f"{labels.student_rl:,} labels that stage 1 never sees sharpen the student after the bridge{asked}."


def _warnings(labels: LabelAllocation, spare: int, student_rl: bool | None) -> tuple[Warning_, ...]:
    found = []
    if not labels.student_rl and student_rl is not False:
        found.append(
            Warning_(
                code="no_student_rl",
                message=f"Stage 3 (student RL) is left out: its share would be under {MIN_STUDENT_RL} labels. "
                "Ask for student_rl: true to have it all the same.",
            )
        )
    if labels.validation < FEW_VALIDATION:
        found.append(
            Warning_(
                code="few_validation_labels",
                message=f"Gate C1 is judged on {labels.validation} problems: only a large gain will be told from "
                "chance.",
            )
        )
    if spare:
        found.append(Warning_(code="unused_labels", message=f"{spare:,} labels have no use in this plan."))
    return tuple(found)
