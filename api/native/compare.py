"""The same question to every arm of a job, side by side."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field, StringConstraints, model_validator

from api.connected import while_connected
from api.deps import ChatDep, ContextDep
from api.problems import Problem, told
from api.schemas import Id
from s2d.serve.request import Message, SamplingFields
from s2d.services import compare as service
from s2d.services.arms import Answer, ArmAnswers, Services
from s2d.services.compare import Comparison
from s2d.services.grading import Grading
from s2d.services.questions import Question
from s2d.verifiers.pool import Outcome

router = APIRouter(prefix="/compare", tags=["compare"])
RowId = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
Line = Annotated[int, Field(ge=1, strict=True)]
MOST_ARMS = 32


class CompareRequest(SamplingFields):
    """`messages` or a `row`, and how answers are drawn; what is left open is as in the job's evaluation."""

    job: Id = Field(description="A job that has succeeded.")
    arms: list[Id] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_ARMS,
        description="`base`, `workflow` or a control's name; all that the job has when not given.",
    )
    messages: list[Message] | None = Field(default=None, min_length=1)
    row: Line | RowId | None = Field(
        default=None, description="A row of the job's file: its line in the upload, or its id."
    )
    n: int | None = Field(default=None, ge=1, le=8, description="Answers of each arm.")

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if (self.messages is None) == (self.row is None):
            raise ValueError("give messages or a row, and not both")
        return self


class ComparedRow(BaseModel):
    """The question as a row of the job's file. `answer` and `role` are null where it is unlabeled."""

    id: str
    line: int = Field(description="In the upload, from 1.")
    answer: str | None = Field(description="The true one.")
    role: str | None = Field(
        description="What the job had the label for: `teacher_rl` and `student_rl` were trained on, gates were judged "
        "on `validation`, the report rests on `test`. Null: no stage has read it."
    )

    @classmethod
    def of(cls, question: Question) -> Self | None:
        row = question.row
        return None if row is None else cls(id=row.id, line=row.line, answer=row.answer, role=question.role)


class ComparedAnswer(BaseModel):
    text: str
    finish_reason: str
    reward: float | None = Field(description="By the job's verifier, in [0, 1]; null where no answer is known.")
    outcome: Outcome | None = Field(description="`timeout`, `crash` and `error` are the verifier's, and a reward of 0.")

    @classmethod
    def of(cls, answer: Answer) -> Self:
        reward, outcome = (answer.grade.reward, answer.grade.outcome) if answer.grade else (None, None)
        return cls(text=answer.text, finish_reason=answer.finish_reason, reward=reward, outcome=outcome)


class ComparedUsage(BaseModel):
    """Tokens of all answers of the arm."""

    prompt_tokens: int
    completion_tokens: int


class ComparedArm(BaseModel):
    """Answers, or an `error`."""

    arm: str
    model: str = Field(description="The student, as chat completions take it.")
    answers: list[ComparedAnswer]
    usage: ComparedUsage | None
    seconds: float = Field(description="Until the last answer, the start of its server included.")
    label_seen_by: list[str] = Field(
        description="Stages behind this model, its teacher's included, that had the row's label to train on."
    )
    error: Problem | None

    @classmethod
    def of(cls, one: ArmAnswers) -> Self:
        return cls(
            arm=one.student.arm,
            model=one.student.id,
            answers=[ComparedAnswer.of(answer) for answer in one.answers],
            usage=ComparedUsage(**one.usage) if one.usage else None,
            seconds=round(one.seconds, 3),
            label_seen_by=list(one.label_seen_by),
            error=told(one.error) if one.error else None,
        )


class Compared(BaseModel):
    object: Literal["comparison"] = "comparison"
    job: str
    messages: list[dict[str, Any]] = Field(description="What was asked, before the chat template.")
    row: ComparedRow | None = Field(description="Null: the question is no row of the job's file.")
    arms: list[ComparedArm]

    @classmethod
    def of(cls, job: str, comparison: Comparison) -> Self:
        question = comparison.question
        return cls(
            job=job,
            messages=[dict(turn) for turn in question.messages],
            row=ComparedRow.of(question),
            arms=[ComparedArm.of(one) for one in comparison.arms],
        )


async def _grading(request: Request) -> Grading:
    return cast(Grading, request.app.state.grading)


@router.post("")
async def compare(
    ctx: ContextDep,
    chat: ChatDep,
    grading: Annotated[Grading, Depends(_grading)],
    request: Request,
    body: CompareRequest,
) -> Compared:
    """Ask the students of a job's arms the same question. Their servers start one after another where not all may run
    at once. An arm that cannot answer has an `error`; the others answer."""
    fields = body.model_dump(mode="json", exclude_none=True, exclude={"job", "arms", "row", "n"})
    asked = fields.pop("messages") if body.row is None else body.row
    async with while_connected(request.receive):
        found = await service.compare(
            Services(ctx, chat, grading), body.job, asked, arms=body.arms, fields=fields, n=body.n or 1
        )
    return Compared.of(body.job, found)
