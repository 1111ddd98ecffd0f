"""One arm of a job asked: its answers, graded where the true one is known, or the reason why there are none."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from s2d.errors import S2DError, Unavailable
from s2d.plan.document import Plan
from s2d.plan.graph import BASE, lineage, products
from s2d.services import chat as chats
from s2d.services.chat import Chat
from s2d.services.context import Context
from s2d.services.grading import Grading
from s2d.services.questions import Question
from s2d.store.tables import StudentRow
from s2d.verifiers.pool import Grade

log = logging.getLogger(__name__)

#: How long an arm waits for a server while others, which may have to start, keep them all busy.
PATIENCE_S = 300.0
TRAINED_ON = ("teacher_rl", "student_rl")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Services:
    """What answers and grades; one event loop's."""

    ctx: Context
    chat: Chat
    grading: Grading


@dataclass(frozen=True)
class Asking:
    """A question as it goes to each arm: one body of a chat completion for each answer that is wanted."""

    plan: Plan
    question: Question
    bodies: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """`grade` is None where the question has no known answer."""

    text: str
    finish_reason: str
    grade: Grade | None


@dataclass(frozen=True)
class ArmAnswers:
    """What one arm said, or why it did not. `seconds` from the asking to the last answer, its server's start included.

    `label_seen_by` names the stages behind this model, its teacher's included, that had the row's label to train on.
    """

    student: StudentRow
    label_seen_by: tuple[str, ...]
    seconds: float
    answers: tuple[Answer, ...] = ()
    usage: Mapping[str, int] | None = None
    error: S2DError | None = None


async def ask(services: Services, asking: Asking, student: StudentRow) -> ArmAnswers:
    """What the student answers. An error of its server or of its verifier is part of the result."""
    seen, began = _seen_by(asking, student.arm), time.monotonic()
    try:
        replies = await together([_patiently(services, student.id, body) for body in asking.bodies])
        answers = await _graded(services, asking, [reply["choices"][0] for reply in replies])
    except S2DError as error:
        return ArmAnswers(student, seen, time.monotonic() - began, error=error)
    except Exception:
        log.exception("%s could not be compared", student.id)
        failed = S2DError("Something went wrong with this arm. The log has the reason.")
        return ArmAnswers(student, seen, time.monotonic() - began, error=failed)
    return ArmAnswers(student, seen, time.monotonic() - began, answers, _usage(replies))


async def together(work: Sequence[Coroutine[Any, Any, Found]]) -> list[Found]:
    """All results in order; when one fails or the caller leaves, the others are not gone on with."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _patiently(services: Services, student_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """The reply; where all servers are busy, after waiting for one. Raises as `s2d.services.chat.complete` does."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await chats.complete(services.ctx, services.chat, student_id, body)
        except Unavailable as error:
            if error.code != "students_busy" or time.monotonic() > until:
                raise
            await asyncio.sleep(error.retry_after_s)


async def _graded(services: Services, asking: Asking, choices: Sequence[dict[str, Any]]) -> tuple[Answer, ...]:
    texts = [choice["message"]["content"] or "" for choice in choices]
    row, grades = asking.question.row, list[Grade | None]([None] * len(texts))
    if row is not None and row.answer is not None:
        pairs = [(text, row.answer) for text in texts]
        grades = [*await services.grading.grade_async(asking.plan.verifier, pairs)]
    reasons = [choice["finish_reason"] for choice in choices]
    return tuple(Answer(*one) for one in zip(texts, reasons, grades, strict=True))


def _seen_by(asking: Asking, arm: str) -> tuple[str, ...]:
    stages = asking.plan.stages
    behind = () if arm == BASE else lineage(stages, products(stages)[arm])
    return tuple(use.stage for use in asking.question.uses if use.stage in behind and use.role in TRAINED_ON)


def _usage(replies: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Tokens of all answers together."""
    told = [reply.get("usage") or {} for reply in replies]
    return {name: sum(one.get(name) or 0 for one in told) for name in ("prompt_tokens", "completion_tokens")}
