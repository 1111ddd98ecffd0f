"""One question to every arm of a job, side by side, with the verifier's rewards where its answer is known.

Arms are asked as the job's evaluation asked them: the same prompt, and its sampling where the caller names none. As
many are asked together as servers may run. An arm that fails says why, and costs the others nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from s2d.errors import NotFound
from s2d.plan.document import Evaluate, Plan, read_plan
from s2d.plan.graph import BASE, WORKFLOW, products
from s2d.services import questions
from s2d.services.arms import ArmAnswers, Asking, Services, ask, together
from s2d.services.context import Context
from s2d.services.questions import Question, Turns
from s2d.store import jobs, plans, students
from s2d.store.tables import JobRow, StudentRow

_SEEDS = 2**63


@dataclass(frozen=True)
class Comparison:
    question: Question
    arms: list[ArmAnswers]


async def compare(
    services: Services,
    job_id: str,
    asked: Turns | str | int,
    *,
    arms: Sequence[str] | None = None,
    fields: Mapping[str, Any],
    n: int = 1,
) -> Comparison:
    """Ask these arms, or all that the job has, `n` times each.

    Args:
        asked: messages, or a row of the job's file: its id, or its line in the upload.
        fields: of a chat completion, without its messages and `n`.

    Raises:
        NotFound: no such job, arm or row, or the job has no students.
        InvalidPlan: another version of s2d made the job's plan.
    """
    plan, chosen, question = await asyncio.to_thread(_look_up, services.ctx, job_id, arms, asked)
    body = {**_as_evaluated(plan, fields), **fields, "messages": question.messages}
    asking = Asking(plan, question, [body | _seed(fields, number) for number in range(n)])
    running = set(services.chat.servers.running())
    # First those whose servers run: the others would push them out, only for them to be started again.
    in_order = sorted(chosen, key=lambda student: student.id not in running)
    turns = asyncio.Semaphore(services.ctx.settings.serve_max_servers)

    async def in_turn(student: StudentRow) -> ArmAnswers:
        async with turns:
            return await ask(services, asking, student)

    found = {one.student.arm: one for one in await together([in_turn(student) for student in in_order])}
    return Comparison(question, [found[student.arm] for student in chosen])


def _look_up(
    ctx: Context, job_id: str, arms: Sequence[str] | None, asked: Turns | str | int
) -> tuple[Plan, list[StudentRow], Question]:
    with ctx.db.read() as session:
        job = _job(session, job_id)
        plan = read_plan(plans.get(session, job.plan_id).document)
        there = {student.arm: student for student in students.of_job(session, job_id)}
    chosen = _chosen(job, plan, there, arms)
    if isinstance(asked, str | int):
        return plan, chosen, questions.of_row(ctx, job, asked)
    return plan, chosen, questions.of_messages(ctx, job, asked)


def _job(session: Session, job_id: str) -> JobRow:
    try:
        return jobs.get(session, job_id)
    except NotFound as err:
        err.param = "job"
        raise


def _chosen(job: JobRow, plan: Plan, there: Mapping[str, StudentRow], arms: Sequence[str] | None) -> list[StudentRow]:
    """The students of the arms that are asked for, each once; of all, the base first and the workflow last."""
    if not there:
        raise NotFound(
            f"Job {job.id!r} ({job.state}) has no students: they are registered when it succeeds.",
            code="model_not_found",
            param="job",
        )
    controls = [arm for arm in products(plan.stages) if arm != WORKFLOW]
    wanted = list(dict.fromkeys(arms or [arm for arm in (BASE, *controls, WORKFLOW) if arm in there]))
    missing = [arm for arm in wanted if arm not in there]
    if missing:
        raise NotFound(
            f"Job {job.id!r} has no student of {', '.join(missing)}; it has {', '.join(sorted(there))}.",
            code="arm_not_found",
            param="arms",
        )
    return [there[arm] for arm in wanted]


def _as_evaluated(plan: Plan, fields: Mapping[str, Any]) -> dict[str, Any]:
    """How the evaluation drew its answers, for what the caller leaves open."""
    evaluation: Evaluate = plan.stage("evaluate")
    drawn = evaluation.sampling.model_dump()
    if fields.get("max_completion_tokens") is None:
        drawn["max_tokens"] = plan.max_completion_tokens
    return drawn


def _seed(fields: Mapping[str, Any], number: int) -> dict[str, int]:
    """Each answer has a seed of its own, so that `n` of them differ as the server's own `n` would."""
    seed = fields.get("seed")
    return {} if seed is None else {"seed": (seed + number) % _SEEDS}
