"""What a user may ask of the planner: the body of `POST /v1/plans` and the options of `s2d plan`.

Everything but the two models and a number of labels is optional; `None` always means that the planner decides. A field
that is unknown, out of range, or without effect is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from s2d.errors import InvalidPlan
from s2d.plan.document import Lora
from s2d.plan.evidence import Evidence
from s2d.plan.frozen import Frozen
from s2d.plan.gates import GateC1, GateC2
from s2d.plan.names import Control
from s2d.plan.overrides import COMPUTE_MATCHED, StageOverrides
from s2d.plan.prompting import Prompting
from s2d.verifiers.base import VerifierSpec

MAX_LABELS = 10_000_000
Fields = TypeVar("Fields", bound=Frozen)
#: Above any real price, and low enough that a cost is a number.
MAX_PRICE = 1_000_000.0
#: Above any real machine: GiB, TFLOP/s and GB/s of one device.
MAX_MEMORY_GIB, MAX_TFLOPS, MAX_BANDWIDTH_GBS = 65_536, 100_000, 1_000_000
MAX_RANK = 65_536
MAX_SAMPLES = 1024
#: What pydantic puts between a field's name and what is in it where several kinds are allowed.
_UNION_MEMBER = re.compile(r"bool|int|float|str|constrained-str|Lora|VerifierSpec|function-after.*")


class DataSummary(Frozen):
    """What the planner knows of an uploaded file."""

    file_id: str
    sha256: str
    labeled: int = Field(ge=0, description="Rows with an answer.")
    unlabeled: int = Field(ge=0, description="Rows without an answer.")
    mean_prompt_chars: float = Field(ge=0)
    p95_prompt_chars: float = Field(ge=0)


class HardwareRequest(Frozen):
    """The machine to plan for; what is not said is detected, or read from the table of known GPUs by `name`."""

    device: Literal["cpu", "cuda"] | None = Field(default=None, description="What trains.")
    devices: int | None = Field(default=None, ge=1, le=1024, description="GPUs that train; 1 on CPU.")
    memory_gib: float | None = Field(
        default=None, gt=0, le=MAX_MEMORY_GIB, description="Memory of one device (RAM on CPU), GiB."
    )
    cpu_threads: int | None = Field(default=None, ge=1, le=4096, description="Torch threads of each process.")
    name: str | None = Field(
        default=None, min_length=1, max_length=100, description="GPU name, such as `H100` or `A100-80GB`."
    )
    tflops: float | None = Field(default=None, ge=0.001, le=MAX_TFLOPS, description="Peak of one device, TFLOP/s.")
    bandwidth_gbs: float | None = Field(
        default=None, ge=0.1, le=MAX_BANDWIDTH_GBS, description="Memory bandwidth of one device, GB/s."
    )
    price_per_hour: float | None = Field(
        default=None,
        gt=0,
        le=MAX_PRICE,
        description="Price of one device for an hour, in your currency; none is built in.",
    )


class LabelOverrides(Frozen):
    """Labels for each use; any subset. The planner shares out what is left."""

    teacher_rl: int | None = Field(default=None, ge=1, le=MAX_LABELS, description="Labels that train the teacher.")
    student_rl: int | None = Field(
        default=None, ge=0, le=MAX_LABELS, description="Held-out labels of stage 3; 0 = no stage 3."
    )
    validation: int | None = Field(
        default=None, ge=2, le=MAX_LABELS, description="Labels that the gates are judged on."
    )
    test: int | None = Field(default=None, ge=1, le=MAX_LABELS, description="Labels read once, for the report.")


class GateOverrides(Frozen):
    """Bounds of the gates. A gate that is given is used as it stands."""

    c1: GateC1 | None = None
    c2: GateC2 | None = None


class PlanRequest(Frozen):
    """A request for a plan. Give `labeled_budget`, or `training_file`, or both (then at most that many labels)."""

    teacher: str = Field(min_length=1, max_length=512, description="Hub id or local folder of the model that explores.")
    student: str = Field(min_length=1, max_length=512, description="Hub id or local folder of the model to improve.")
    labeled_budget: int | None = Field(
        default=None, ge=1, le=MAX_LABELS, description="Problems with a known answer that may be used."
    )
    training_file: str | None = Field(default=None, min_length=1, max_length=200, description="Id of an uploaded file.")
    unlabeled_prompts: int | None = Field(
        default=None,
        ge=0,
        le=MAX_LABELS,
        description="Problems without an answer; only without `training_file`, which counts its own.",
    )
    verifier: str | VerifierSpec = Field(default="math", description="Name of a verifier, or name and options.")
    hardware: HardwareRequest = Field(
        default=HardwareRequest(), description="The machine to plan for; detected where not said."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Every other seed is derived from it.")
    controls: tuple[Control, ...] = Field(
        default=(), description="Control arms, matched in labels, prompts, updates and evaluation (docs/plan.md)."
    )
    compute_matched: bool = Field(
        default=False,
        description="The controls of the bridge and direct_grpo also go on until they had as many FLOPs as what they "
        "are compared with.",
    )
    on_gate_failure: Literal["stop", "continue"] = Field(
        default="stop", description="What a job does when C1 or C2 does not hold."
    )
    gates: GateOverrides = GateOverrides()
    student_rl: bool | None = Field(default=None, description="Stage 3 on held-out labels.")
    labels: LabelOverrides = LabelOverrides()
    bridge_prompts: int | None = Field(
        default=None, ge=1, le=MAX_LABELS, description="Distinct prompts of the dense bridge; answers unused."
    )
    prompt: Prompting = Field(
        default=Prompting(), description="A system message, an instruction, arguments of the chat template."
    )
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="Longer prompts are dropped.")
    max_completion_tokens: int | None = Field(default=None, ge=1, description="Longest completion, tokens.")
    mean_completion_tokens: float | None = Field(
        default=None, ge=1, description="Mean completion where you know it: times and tokens are then told for it."
    )
    lora: bool | Lora | None = Field(
        default=None,
        description="True or settings: adapters everywhere; false: full fine-tuning everywhere; null: adapters "
        "in stages that do not fit otherwise.",
    )
    rollout_engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="What draws rollouts: `vllm` needs a GPU and the package vllm there."
    )
    stages: StageOverrides = StageOverrides()
    evidence: Evidence | None = Field(
        default=None,
        description="Pass rates of the two base models on a sample of the labels: what `s2d passrates` finds.",
    )

    @property
    def verifier_spec(self) -> VerifierSpec:
        """The verifier with its options. InvalidRequest for an unknown name."""
        if isinstance(self.verifier, VerifierSpec):
            return self.verifier
        return VerifierSpec.model_validate({"name": self.verifier})

    @field_validator("verifier")
    @classmethod
    def _known(cls, verifier: str | VerifierSpec) -> str | VerifierSpec:
        if isinstance(verifier, str):
            VerifierSpec.model_validate({"name": verifier})
        return verifier

    @field_validator("lora")
    @classmethod
    def _low_rank(cls, lora: bool | Lora | None) -> bool | Lora | None:
        if isinstance(lora, Lora) and max(lora.rank, lora.alpha) > MAX_RANK:
            raise ValueError(f"rank and alpha are at most {MAX_RANK:,}")
        return lora

    @field_validator("gates")
    @classmethod
    def _few_samples(cls, gates: GateOverrides) -> GateOverrides:
        if gates.c1 is not None and gates.c1.k > MAX_SAMPLES:
            raise ValueError(f"c1.k, completions per validation problem, is at most {MAX_SAMPLES:,}")
        return gates

    @model_validator(mode="after")
    def _consistent(self) -> PlanRequest:
        if self.labeled_budget is None and self.training_file is None:
            raise ValueError("give labeled_budget or training_file: a plan needs to know how many labels there are")
        if self.training_file is not None and self.unlabeled_prompts is not None:
            raise ValueError("unlabeled_prompts goes with labeled_budget alone: training_file counts its own")
        if self.student_rl is False and self.labels.student_rl:
            raise ValueError("labels.student_rl asks for labels of a stage that student_rl: false leaves out")
        if self.student_rl and self.labels.student_rl == 0:
            raise ValueError("student_rl: true needs labels, and labels.student_rl is 0")
        if len(set(self.controls)) < len(self.controls):
            raise ValueError("controls names an arm twice")
        if self.compute_matched and not set(self.controls) & set(COMPUTE_MATCHED):
            raise ValueError(f"compute_matched needs one of the controls {', '.join(COMPUTE_MATCHED)}")
        if self.stages.direct_grpo is not None and "direct_grpo" not in self.controls:
            raise ValueError("stages.direct_grpo is set, but controls does not ask for direct_grpo")
        return self


def read_request(fields: Mapping[str, Any]) -> PlanRequest:
    """`PlanRequest` from plain values (a command line, a file).

    Raises:
        InvalidPlan: unknown, missing or impossible fields, each named with the reason.
    """
    return read_fields(PlanRequest, fields)


def read_fields(kind: type[Fields], fields: Mapping[str, Any]) -> Fields:
    """Part of a request from plain values. Raises InvalidPlan as `read_request` does."""
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as err:
        problems = list(_problems(err))
        message = "; ".join(f"{where}: {why}" for where, why in problems)
        raise InvalidPlan(f"This plan request cannot be used. {message}", param=problems[0][0]) from err


def _problems(err: ValidationError) -> Iterator[tuple[str, str]]:
    """Field and reason of each problem; of a field that may be of several kinds, what is wrong within the given one."""
    found = []
    for problem in err.errors(include_url=False, include_input=False):
        first, *rest = problem["loc"] or ("request",)
        parts = [str(first), *(str(part) for part in rest if not _UNION_MEMBER.fullmatch(str(part)))]
        found.append((".".join(parts), problem["msg"]))
    fields = [where for where, _ in found]
    return (one for one in found if not any(where.startswith(f"{one[0]}.") for where in fields))
