"""A fine-tuning job in OpenAI's shape: what a client sends, and what it is shown. docs/openai.md has the mapping."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from api.schemas import Id, RequestBody
from s2d.errors import S2DError
from s2d.plan.request import PlanRequest
from s2d.services.fine_tuning import Seen
from s2d.services.graders import Grader
from s2d.services.progress import EtaRange, Progress
from s2d.store.states import FINAL, JobState
from s2d.store.tables import JobRow

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
#: A file is validated when it is uploaded, so no job is ever `validating_files`.
STATUS: dict[str, Status] = {
    "queued": "queued",
    "running": "running",
    "pausing": "running",
    "paused": "queued",
    "cancelling": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
}

#: The body has fields of its own for these of a plan's request.
_OWN_FIELDS = {"student": "model", "training_file": "training_file", "seed": "seed"}


@contextmanager
def params_as_sent() -> Iterator[None]:
    """An error names a field of a plan's request; here that lies in `s2d`, or is the body's own."""
    try:
        yield
    except S2DError as error:
        if error.param is not None and not error.param.startswith(("s2d.", "method.")):
            error.param = _OWN_FIELDS.get(error.param, f"s2d.{error.param}")
        raise


def _refuse(reason: str, *allowed: Any) -> BeforeValidator:
    """Only what says nothing is taken: anything else would be ignored."""

    def check(value: Any) -> Any:
        if value is None or value in allowed:
            return value
        raise ValueError(reason)

    return BeforeValidator(check)


_STEPS = "the planner sets this, and s2d.stages changes it stage by stage"
Auto = Annotated[Literal["auto"] | None, _refuse(_STEPS, "auto")]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]


class Hyperparameters(RequestBody):
    batch_size: Auto = None
    learning_rate_multiplier: Auto = None
    n_epochs: Auto = None


class ReinforcementHyperparameters(Hyperparameters):
    compute_multiplier: Auto = None
    eval_interval: Auto = None
    eval_samples: Auto = None
    reasoning_effort: Annotated[Literal["default"] | None, _refuse(_STEPS, "default")] = None


class Reinforcement(RequestBody):
    grader: Grader = Field(description="Chooses the job's verifier.")
    hyperparameters: ReinforcementHyperparameters | None = None


class Method(RequestBody):
    type: Annotated[
        Literal["reinforcement"],
        _refuse(
            "s2d imitates no given completions and no preferences: it rewards right answers. Leave method out, or say "
            "reinforcement",
            "reinforcement",
        ),
    ]
    reinforcement: Reinforcement


class TrainingOptions(PlanRequest):
    """What only s2d has: any field of a plan's request (docs/plan.md) but those that the body has itself."""

    student: SkipJsonSchema[str] = ""
    training_file: SkipJsonSchema[str | None] = None
    seed: SkipJsonSchema[int] = 0


class FineTuningRequest(RequestBody):
    """OpenAI's body, and `s2d`, which arrives by the client's `extra_body`. What would be ignored is refused."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="Hub id or local folder of the student."
    )
    training_file: Id
    suffix: Annotated[str, StringConstraints(max_length=64, pattern=r"^[^\x00]*$")] | None = Field(
        default=None, description="Becomes part of the student's id, in lower case, with dashes for what is no letter."
    )
    seed: int | None = Field(default=None, ge=0, lt=2**31, description="0 where none is given.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(default=None, max_length=16)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    validation_file: Annotated[
        None, _refuse("s2d sets validation labels aside from the training file: leave it out, or see s2d.labels")
    ] = None
    integrations: Annotated[
        Annotated[list[Any], Field(max_length=0)] | None, _refuse("there are none: leave it out", [])
    ] = None
    s2d: TrainingOptions = Field(description="`teacher`, and whatever else of a plan's request is to be chosen.")

    @model_validator(mode="before")
    @classmethod
    def _with_options(cls, body: Any) -> Any:
        """So that a client which knows nothing of `s2d` is told what to say there."""
        return {"s2d": {}} | body if isinstance(body, dict) else body

    @field_validator("suffix")
    @classmethod
    def _speakable(cls, suffix: str | None) -> str | None:
        if suffix is not None and not re.search("[A-Za-z0-9]", suffix):
            raise ValueError("it needs a letter or digit of ASCII: the student's id is part of addresses")
        return suffix

    @field_validator("s2d", mode="wrap")
    @classmethod
    def _completed(cls, options: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """A plan's request takes the three fields that the body has from there."""
        if not isinstance(options, dict):
            return read(options)
        if "teacher" not in options:
            raise ValueError('say who teaches, by the client\'s extra_body={"s2d": {"teacher": "Qwen/Qwen3-8B"}}')
        for name, own in _OWN_FIELDS.items():
            if name in options:
                raise ValueError(f"{name} is said by {own}: leave it out here")
        own_fields = {name: info.data.get(own) for name, own in _OWN_FIELDS.items()}
        with params_as_sent():
            return read(options | {name: value for name, value in own_fields.items() if value is not None})

    def kept(self) -> dict[str, Any]:
        """What was sent, to be stored with the job."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"s2d": set(_OWN_FIELDS)})


class FineTuningError(BaseModel):
    code: str
    message: str
    param: None = None


class JobDetails(BaseModel):
    """What OpenAI's shape has no place for; `GET /v1/jobs/{id}` has more."""

    plan: str
    state: JobState
    teacher: str
    stage: str | None
    step: int
    steps: int
    eta_s: EtaRange | None


class FineTuningJob(BaseModel):
    """A job, made here or natively: both show the same ones. Times are seconds since the epoch."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None = Field(description="The middle of the range in `s2d.eta_s`.")
    model: str = Field(description="What the student was before.")
    fine_tuned_model: str | None = Field(description="The student, once the job has succeeded.")
    organization_id: Literal["s2d"] = "s2d"
    status: Status
    training_file: str
    validation_file: None = None
    hyperparameters: dict[str, Any] = Field(default={}, description="Empty: the plan has them, stage by stage.")
    trained_tokens: int | None = Field(description="Generated plus trained on, in all stages, once the job has ended.")
    result_files: list[str] = []
    seed: int
    error: FineTuningError | None
    metadata: dict[str, str] | None
    method: dict[str, Any] | None = Field(description="As it was sent; without a grader that the client cannot name.")
    s2d: JobDetails

    @classmethod
    def of(cls, seen: Seen) -> Self:
        row, progress = seen.job, Progress.model_validate(seen.job.progress)
        sent = row.request or {}
        eta = progress.eta_s if row.state == "running" else None
        return cls(
            id=row.id,
            created_at=int(row.created_at),
            finished_at=_whole(row.finished_at),
            estimated_finish=_whole(time.time() + (eta.low + eta.high) / 2 if eta else None),
            model=seen.plan.student,
            fine_tuned_model=row.student_id,
            status=STATUS[row.state],
            training_file=row.file_id,
            trained_tokens=_tokens(row, progress),
            seed=seen.plan.seed,
            error=FineTuningError(code=row.error["code"], message=row.error["message"]) if row.error else None,
            metadata=sent.get("metadata"),
            method=_method(sent.get("method")),
            s2d=JobDetails(
                plan=row.plan_id,
                state=row.state,
                teacher=seen.plan.teacher,
                stage=progress.stage,
                step=progress.step,
                steps=progress.steps,
                eta_s=eta,
            ),
        )


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _method(sent: dict[str, Any] | None) -> dict[str, Any] | None:
    """The client's types have no name for our own graders."""
    if sent is None or sent["reinforcement"]["grader"]["type"] == "string_check":
        return sent
    return {"type": sent["type"], "s2d": sent["reinforcement"]}


def _tokens(row: JobRow, progress: Progress) -> int | None:
    return (sum(stage.tokens for stage in progress.stages) or None) if row.state in FINAL else None
