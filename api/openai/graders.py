"""Graders tried out on one sample, with OpenAI's addresses; see docs/openai.md."""

from __future__ import annotations

from typing import Annotated, Any, Self, cast

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.schemas import RequestBody
from s2d.services.grader_runs import GraderRuns, Run, Score
from s2d.services.graders import Grader, Multi, StringCheck, Verify, as_client_knows
from s2d.verifiers.pool import Outcome

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["graders"])


# Async only so that FastAPI calls it in place.
async def _runs(request: Request) -> GraderRuns:
    return cast(GraderRuns, request.app.state.grader_runs)


class ValidateRequest(RequestBody):
    grader: Grader


class RunRequest(RequestBody):
    grader: Grader
    model_sample: Annotated[str, StringConstraints(max_length=1_000_000)] = Field(description="What a model wrote.")
    item: Any = Field(default=None, description="A row of data: the templates' `item`.")


class Understood(BaseModel):
    grader: dict[str, Any] = Field(description="With every default filled in.")


class GraderValidated(BaseModel):
    """`grader` is null where the client's types have no name for it: our verifiers, and several in one."""

    grader: dict[str, Any] | None
    s2d: Understood


class RunErrors(BaseModel):
    """OpenAI's list. Those of python and model graders never occur here."""

    formula_parse_error: bool = False
    invalid_variable_error: bool = Field(default=False, description="A template names what item or sample has not.")
    model_grader_parse_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_server_error: bool = False
    model_grader_server_error_details: str | None = None
    other_error: bool = Field(default=False, description="A verifier could not compare, or a formula has no value.")
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    sample_parse_error: bool = Field(default=False, description="sample.output_json of a sample that is no JSON.")
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = Field(default=False, description="The verifier did not answer in time.")

    model_config = ConfigDict(protected_namespaces=())


class PartDetails(BaseModel):
    outcome: Outcome | None = Field(description="The verifier's word; null for a string check.")
    reason: str | None = Field(description="Why the reward is 0 although nothing was compared.")

    @classmethod
    def of(cls, score: Score) -> Self:
        return cls(outcome=score.outcome, reason=score.reason)


class RunMetadata(BaseModel):
    name: str
    type: str
    errors: RunErrors
    execution_time: float = Field(description="Seconds.")
    scores: dict[str, float] = Field(description="Reward by grader.")
    token_usage: None = None
    sampled_model_name: None = None
    s2d: dict[str, PartDetails] = Field(description="By grader.")


class GraderRun(BaseModel):
    """How good the sample is."""

    reward: float = Field(description="In [0, 1], but for the formula of a multi grader.")
    sub_rewards: dict[str, float] = Field(description="Of the parts of a multi grader.")
    metadata: RunMetadata
    model_grader_token_usage_per_model: dict[str, Any] = {}

    model_config = ConfigDict(protected_namespaces=())

    @classmethod
    def of(cls, grader: StringCheck | Verify | Multi, run: Run) -> Self:
        parts = run.parts or {grader.name: run.score}
        faults = dict.fromkeys(run.faults, True)
        return cls(
            reward=run.score.reward,
            sub_rewards={name: score.reward for name, score in run.parts.items()},
            metadata=RunMetadata(
                name=grader.name,
                type=grader.type,
                errors=RunErrors.model_validate(faults),
                execution_time=run.seconds,
                scores={name: score.reward for name, score in parts.items()},
                s2d={name: PartDetails.of(score) for name, score in parts.items()},
            ),
        )


@router.post("/validate")
def validate(body: ValidateRequest) -> GraderValidated:
    """Whether a grader can be run. One that cannot is a 400 that says why."""
    return GraderValidated(
        grader=as_client_knows(body.grader), s2d=Understood(grader=body.grader.model_dump(mode="json"))
    )


@router.post("/run")
def run(runs: Annotated[GraderRuns, Depends(_runs)], body: RunRequest) -> GraderRun:
    """Grade one sample. A sample that hangs or kills its verifier costs itself a reward of 0 after some seconds."""
    return GraderRun.of(body.grader, runs.run(body.grader, body.model_sample, body.item))
