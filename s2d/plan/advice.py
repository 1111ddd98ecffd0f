"""What we would do with the labels and why: each recommendation with its reason and what it rests on.

Three kinds of evidence, named as such: the paper, our bench at small scale, and the probe of the user's own pair. The
first two are no promise for another pair, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from s2d.plan.allocation import MIN_STUDENT_RL, allocate
from s2d.plan.defaults import GROUP_SIZE
from s2d.plan.document import Advice, LabelAllocation
from s2d.plan.evidence import Evidence, PassRates
from s2d.plan.request import MAX_LABELS, PlanRequest

#: A teacher that always solves so large a share of the problems leaves stage 3 nothing to learn from.
SOLVED = 0.9
#: With fewer groups that hold both right and wrong rollouts GRPO mostly computes zeros.
FEW_MIXED = 0.15
#: Fewer problems are not enough to send somebody another way.
ENOUGH_PROBLEMS = 32
FURTHER = 500

PAPER = "paper (arXiv 2605.12483), Qwen3-8B to 1.7B on MATH"
BENCH = (
    "our bench (benchmarks/results/paper-table.md), six seeds of toy arithmetic, whose sizes say nothing of your pair"
)
SWEEP = "our bench (benchmarks/results/allocation.md), toy arithmetic"
PROBE = "the probe of your pair"

#: Points; a test holds them against the results.
WORKFLOW_GAIN, WORKFLOW_LOW, WORKFLOW_HIGH = 73.6, 71.9, 75.4
BENCH_LEAD = 3.6
SWEEP_LOW = 98
STAGE_3_GAIN, STAGE_3_LOW, STAGE_3_HIGH = 3.0, 1.2, 4.8


def advise(request: PlanRequest, labeled: int, labels: LabelAllocation, student_rl: bool | None) -> tuple[Advice, ...]:
    """Everything that we would say of this allocation; `student_rl` is what it was made with."""
    evidence = request.evidence
    found = [_route(evidence), *_labels(evidence), _stage_3(evidence, labels)]
    if (more := _further(request, labeled, labels, student_rl)) is not None:
        found.append(more)
    return tuple(found)


def stage_3_pays(evidence: Evidence | None) -> bool:
    """Whether held-out labels could still teach the student after the bridge, which leaves it about as good as the
    teacher."""
    return evidence is None or evidence.teacher.always < SOLVED


def _route(evidence: Evidence | None) -> Advice:
    """Through the teacher, or GRPO on the student directly?"""
    if evidence is None:
        return Advice(
            code="through_the_teacher",
            message="Spend labels on the teacher first. Whether it holds for your pair a probe hints at "
            "(`s2d passrates`), and the control direct_grpo for sure.",
            evidence=(
                f"{PAPER}: 79.3 against 75.9 for direct GRPO at equal labels, -7.8 without teacher RL",
                f"{BENCH}: {WORKFLOW_GAIN:+.1f} points [{WORKFLOW_LOW:+.1f}, {WORKFLOW_HIGH:+.1f}]",
            ),
        )
    teacher, student = evidence.teacher, evidence.student
    lead, unsure = teacher.avg - student.avg, math.hypot(teacher.half_width, student.half_width)
    told = (f"{PROBE}: teacher {_rate(teacher)}, student {_rate(student)}",)
    if lead + unsure <= 0:
        return Advice(
            code="direct_grpo",
            message="Your teacher is behind the student: take direct GRPO on the student, or another teacher. The "
            "method moves what the stronger model finds.",
            evidence=told,
        )
    enough = min(teacher.problems, student.problems) >= ENOUGH_PROBLEMS
    if enough and teacher.mixed(GROUP_SIZE) < FEW_MIXED <= student.mixed(GROUP_SIZE):
        return Advice(
            code="direct_grpo",
            message="Hardly any of these labels can teach the teacher, and they can the student: take direct GRPO on "
            "the student, or labels that the teacher sometimes gets right and sometimes wrong.",
            evidence=told,
        )
    message = f"Spend labels on the teacher first: it is ahead by {100 * lead:.1f} ± {100 * unsure:.1f} points."
    if lead - unsure <= 0:
        message += (
            " That may be chance, and it does not decide: what counts is what the teacher can learn. The control "
            "direct_grpo tells for sure."
        )
    small = f"{BENCH}: ahead by {BENCH_LEAD:.1f} points before, {WORKFLOW_GAIN:+.1f} points against direct GRPO after"
    paper = f"{PAPER}: 79.3 against 75.9 for direct GRPO at equal labels"
    return Advice(code="through_the_teacher", message=message, evidence=(*told, paper, small))


def _labels(evidence: Evidence | None) -> Iterator[Advice]:
    """Which labels can teach the teacher anything."""
    if evidence is None:
        return
    teacher = evidence.teacher
    mixed = teacher.mixed(GROUP_SIZE)
    told = (
        f"{PROBE}: of {teacher.problems:,} problems {teacher.never:.0%} were never solved in {teacher.k} tries and "
        f"{teacher.always:.0%} always",
    )
    if mixed >= FEW_MIXED:
        yield Advice(
            code="labels_with_signal",
            message=f"About {mixed:.0%} of the teacher's groups will hold both right and wrong rollouts; the labels of "
            "the others teach nothing, so count on that share of them.",
            evidence=told,
        )
    elif teacher.never >= teacher.always:
        yield Advice(
            code="labels_too_hard",
            message=f"Only about {mixed:.0%} of the teacher's groups will hold both right and wrong rollouts, because "
            "it solves too little: take easier problems, a stronger teacher, or more rollouts a problem "
            "(stages.teacher_rl.group_size).",
            evidence=told,
        )
    else:
        yield Advice(
            code="labels_too_easy",
            message=f"Only about {mixed:.0%} of the teacher's groups will hold both right and wrong rollouts, because "
            "it solves nearly all: take harder problems, or leave teacher RL out and distill it as it is.",
            evidence=told,
        )


def _stage_3(evidence: Evidence | None, labels: LabelAllocation) -> Advice:
    known = (
        f"{PAPER}: 75.4 to 78.5 with held-out labels, 2.8 above as many updates without",
        f"{BENCH}: {STAGE_3_GAIN:+.1f} points [{STAGE_3_LOW:+.1f}, {STAGE_3_HIGH:+.1f}]; new labels were no better "
        "than stage 1's there",
    )
    if labels.student_rl:
        return Advice(
            code="stage_3",
            message=f"Hold {labels.student_rl:,} labels out for the student after the bridge.",
            evidence=known,
        )
    if evidence is not None and not stage_3_pays(evidence):
        return Advice(
            code="no_stage_3",
            message="Leave stage 3 out: the teacher always solves nearly every problem before any training, so after "
            "the bridge the student will find no group to learn from.",
            evidence=(f"{PROBE}: {evidence.teacher.always:.0%} of the problems are always solved",),
        )
    return Advice(
        code="no_stage_3",
        message=f"Stage 3 is left out: fewer than {MIN_STUDENT_RL} labels, or not asked for. It is the smaller part of "
        "the gain.",
        evidence=known,
    )


def _further(request: PlanRequest, labeled: int, labels: LabelAllocation, student_rl: bool | None) -> Advice | None:
    """What so many more labels would change; None where nothing of it is the planner's to decide."""
    if labeled + FURTHER > MAX_LABELS or any(one is not None for one in request.labels.model_dump().values()):
        return None
    more = allocate(labeled + FURTHER, request.labels, student_rl).labels
    new = {name: getattr(more, name) - getattr(labels, name) for name in LabelAllocation.model_fields}
    shared = ", ".join(f"{count:,} {_USES[name]}" for name, count in new.items() if count)
    doublings = math.log2(more.teacher_rl / labels.teacher_rl)
    message = f"{FURTHER} more labels would go to: {shared}."
    if labels.test and more.test > labels.test:
        message += f" The test's interval would narrow from ±{_worst(labels.test)} to ±{_worst(more.test)} points."
    return Advice(
        code="more_labels",
        message=f"{message} The teacher would have {2**doublings:.2f} times its labels.",
        evidence=(
            f"{SWEEP}: with the planner's steps 512 labels came to {SWEEP_LOW:.0f} % and more at any share for the "
            "teacher from 35 % on, so labels were not what was short there",
        ),
    )


_USES = {
    "teacher_rl": "to the teacher",
    "student_rl": "held out for the student",
    "validation": "to validation",
    "test": "to the test",
}


def _rate(rates: PassRates) -> str:
    return f"{100 * rates.avg:.1f} ± {100 * rates.half_width:.1f} %"


def _worst(problems: int) -> str:
    """Half of a 95 % interval at an accuracy of one half, points."""
    return f"{100 * 1.96 * 0.5 / math.sqrt(problems):.1f}"
