"""The frozen, versioned plan document (design decision 1).

A plan says all that a job needs to know: models, label allocation, every hyperparameter, gates, seeds. Its id is the
hash of that content, so equal requests give equal plans and a changed plan file is noticed. Units stand in the field
names or in their descriptions; every estimate is a range.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from s2d.errors import InvalidPlan
from s2d.plan.evidence import Evidence
from s2d.plan.frozen import Frozen
from s2d.plan.gates import Gates
from s2d.plan.graph import WORKFLOW, check_stages, lineage
from s2d.plan.machine import Hardware
from s2d.plan.names import Control, Name
from s2d.plan.prompting import Prompting
from s2d.verifiers.base import VerifierSpec

SCHEMA_VERSION = "s2d.plan/3"


class Range(Frozen):
    """A sampled or modelled quantity: the 80 % range that we expect, never a bare number."""

    low: float = Field(ge=0)
    high: float = Field(ge=0)


class Model(Frozen):
    """What the planner read from a model's `config.json` and tokenizer files; no weights were loaded."""

    name: str = Field(description="Hub id or local folder, as the user gave it.")
    revision: str | None = None
    model_type: str
    parameters: int = Field(gt=0, description="Parameters, tied embeddings counted once.")
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context: int = Field(description="Longest sequence, tokens.")
    tied_embeddings: bool
    config_hash: str = Field(description="sha256 of config.json, or of the catalog entry.")
    source: Literal["local", "hub", "catalog"]


class LabelAllocation(Frozen):
    """How many labels each use gets. No label has two uses."""

    teacher_rl: int = Field(ge=0)
    student_rl: int = Field(ge=0, description="Held out from stage 1; 0 when stage 3 is not run.")
    validation: int = Field(ge=0, description="Gates are judged on these.")
    test: int = Field(ge=0, description="Read once, for the report.")

    @property
    def total(self) -> int:
        return self.teacher_rl + self.student_rl + self.validation + self.test


class Data(Frozen):
    """The rows a plan counts on. `file_sha256` is None when it was made from a label count alone."""

    file_id: str | None = None
    file_sha256: str | None = None
    labeled: int = Field(ge=0)
    unlabeled: int = Field(ge=0)
    labels: LabelAllocation
    why_teacher: str = Field(default="", description="Why so many labels train the teacher.")
    why_student: str = Field(default="", description="Why so many are held out for the student, or none.")
    bridge_prompts: int = Field(ge=0, description="Prompts without labels in the dense bridge.")
    split_seed: int


class Lora(Frozen):
    rank: int = Field(default=32, ge=1)
    alpha: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] = "all-linear"


class Sampling(Frozen):
    """How rollouts are drawn in training. T = 1 and no filter: the policy's own distribution."""

    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0 = off.")


class Optim(Frozen):
    """AdamW and its schedule."""

    learning_rate: float = Field(gt=0)
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)


PromptPool = Literal["bridge", "teacher_rl"]
"""`bridge`: all prompts of the bridge. `teacher_rl`: those of stage 1's labels alone."""


class MemoryItem(Frozen):
    """A part of a stage's expected peak, see docs/plan.md."""

    name: Literal[
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "kv_cache",
        "logits",
        "teacher",
        "rollout_engine",
        "runtime",
    ]
    gib: float = Field(gt=0)


class Alternative(Frozen):
    """A way to train a stage, with the largest micro-batch that fits, or the smallest where none does."""

    lora: bool
    sharded: bool = False
    gradient_checkpointing: bool
    per_device_batch_size: int = Field(ge=1)
    memory_gib: float = Field(gt=0, description="Expected peak per device.")
    over_gib: float = Field(ge=0, description="By how much its upper end is over what can be used; 0: it fits.")


class Estimate(Frozen):
    """What a stage is expected to take: ranges, with the formula's inputs in docs/plan.md."""

    tokens: Range = Field(description="Tokens generated plus trained on.")
    seconds: Range
    memory_gib: Range = Field(description="Peak per device.")
    memory: tuple[MemoryItem, ...] = Field(description="What the expected peak is made of; their sum is in the range.")


class StageBase(Frozen):
    """What every stage has. A stage of the workflow has the id of its kind."""

    id: Name
    arm: Name = Field(default=WORKFLOW, description="Whose account the stage's labels and gates go to.")
    seed: int
    estimate: Estimate
    why: str = Field(description="One sentence: why this stage has these numbers.")


class Training(StageBase):
    """What every training stage has. `sequences_per_step` completions make one optimizer step."""

    trains: Name = Field(description="The model that this stage produces.")
    starts_from: Name
    steps: int = Field(ge=1, description="Optimizer steps.")
    matches: tuple[Name, ...] = Field(
        default=(),
        description="A control makes as many steps as these stages have really made together; `steps` is what the plan "
        "expects of them.",
    )
    compute_of: Name | None = Field(
        default=None,
        description="A control goes on until the FLOPs behind its model equal those behind this model; `steps` is an "
        "estimate.",
    )
    optim: Optim
    sampling: Sampling = Sampling()
    per_device_batch_size: int = Field(ge=1, description="Sequences in one forward pass on one device.")
    gradient_accumulation: int = Field(ge=1)
    dtype: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    lora: Lora | None = None
    sharded: bool = Field(
        default=False,
        description="Each device keeps its share of the weights, gradients and optimizer states (FSDP).",
    )
    alternatives: tuple[Alternative, ...] = Field(
        description="What was open to this stage, cheapest first: the first that fits was taken, unless it fits only "
        "in micro-batches so small that recomputing is better."
    )
    save_every: int = Field(ge=1, description="Steps between checkpoints.")


class Grpo(Training):
    """GRPO with token-mean (`dapo`) aggregation, asymmetric clip, no reference KL unless `beta` > 0."""

    kind: Literal["teacher_rl", "student_rl", "direct_grpo"]
    label_roles: tuple[Literal["teacher_rl", "student_rl"], ...]
    prompts_per_step: int = Field(ge=1)
    group_size: int = Field(ge=2, description="Rollouts per prompt (G).")
    epsilon: float = Field(default=0.2, gt=0)
    epsilon_high: float = Field(default=0.28, gt=0)
    beta: float = Field(default=0.0, ge=0)
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"


class TeacherRollouts(StageBase):
    """Teacher rollouts for the warmup: generated once, kept on disk with their provenance, reused."""

    kind: Literal["teacher_rollouts"] = "teacher_rollouts"
    teacher: Name = "rl_teacher"
    pool: PromptPool = "bridge"
    prompts: int = Field(ge=1, description="Distinct prompts.")
    samples_per_prompt: int = Field(default=1, ge=1)
    sampling: Sampling = Sampling()
    batch_size: int = Field(ge=1)
    dtype: Literal["float32", "bfloat16"]


class Distillation(Training):
    """What both halves of the dense bridge share."""

    teacher: Name = "rl_teacher"
    sequences_per_step: int = Field(ge=1, description="Rollouts in one step.")
    token_share: float = Field(
        default=1.0, gt=0, le=1, description="Share of each rollout's tokens that is trained on, the most informative."
    )
    prefix_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Rollouts end after this share of max_completion_tokens; a student may forget what comes after.",
    )


class Warmup(Distillation):
    """Stage 2a: forward KL on stored teacher rollouts, at least `steps`, on until C2 holds, at most `max_steps`."""

    kind: Literal["warmup"] = "warmup"
    rollouts: Name = Field(default="teacher_rollouts", description="The stage whose stored rollouts it reads.")
    max_steps: int = Field(ge=1)
    check_every: int = Field(ge=1, description="Steps between C2 measurements once `steps` are done.")
    score_once: bool = Field(
        default=False, description="The teacher reads each rollout once; its hidden states are kept on disk meanwhile."
    )


class Opd(Distillation):
    """Stage 2b: full-vocabulary reverse KL on the student's own rollouts, one a prompt."""

    kind: Literal["opd"] = "opd"
    pool: PromptPool = "bridge"
    extrapolate: tuple[Annotated[float, Field(gt=0, le=10)], ...] = Field(
        default=(),
        max_length=8,
        description="Rising factors a by which the whole update may be prolonged at the end, start + (1 + a)(end - "
        "start), tried until the reverse KL on held-out prompts rises; the lowest is kept, that of a = 0 included.",
    )


class Select(StageBase):
    """Keeps the candidate with the best avg@k on the validation labels, the first of equals."""

    kind: Literal["select"] = "select"
    candidates: tuple[Name, ...] = Field(min_length=2)
    keeps_as: Name = Field(description="The name under which the best one is kept.")
    k: int = Field(ge=1, description="Completions per validation problem.")
    sampling: Sampling
    batch_size: int = Field(ge=1)
    dtype: Literal["float32", "bfloat16"]


class Evaluate(StageBase):
    """avg@k and pass@k on the test labels, for every model of the job."""

    kind: Literal["evaluate"] = "evaluate"
    models: tuple[Name, ...]
    k: int = Field(ge=1, description="Completions per problem.")
    sampling: Sampling
    batch_size: int = Field(ge=1)
    dtype: Literal["float32", "bfloat16"]


Stage = Annotated[Grpo | TeacherRollouts | Warmup | Opd | Select | Evaluate, Field(discriminator="kind")]


class Warning_(Frozen):  # noqa: N801 (the builtin has the name)
    """Something the user should know before paying for the job."""

    code: str
    message: str


class Advice(Frozen):
    """What we would do, why, and what that rests on."""

    code: str
    message: str
    evidence: tuple[str, ...]


class Plan(Frozen):
    """The staged plan. Frozen; `id` is derived from everything else."""

    schema_version: Literal["s2d.plan/3"] = "s2d.plan/3"
    id: str = ""
    seed: int
    teacher: Model
    student: Model
    verifier: VerifierSpec
    data: Data
    hardware: Hardware
    prompt: Prompting = Prompting()
    max_prompt_tokens: int = Field(ge=1, description="Longer prompts are dropped and counted.")
    max_completion_tokens: int = Field(ge=1)
    mean_prompt_tokens: float = Field(gt=0, description="What the estimates take.")
    mean_completion_tokens: float | None = Field(
        default=None, gt=0, description="What the estimates take; None: 20 % to 100 % of the longest."
    )
    rollout_engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="What draws rollouts in training, validation and evaluation."
    )
    stages: tuple[Stage, ...]
    gates: Gates
    controls: tuple[Control, ...] = ()
    warnings: tuple[Warning_, ...] = ()
    advice: tuple[Advice, ...] = ()
    evidence: Evidence | None = Field(default=None, description="Pass rates of the base models, as the request gave.")

    def content_hash(self) -> str:
        """sha256 of the canonical JSON of everything but the id."""
        body = self.model_dump(mode="json", exclude={"id"})
        return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def sealed(self) -> Plan:
        """This plan with its id set from its content."""
        return self.model_copy(update={"id": f"plan_{self.content_hash()[:24]}"})

    def stage(self, name: str) -> Any:
        """The stage with this id.

        Raises:
            KeyError: the plan has none.
        """
        for stage in self.stages:
            if stage.id == name:
                return stage
        raise KeyError(name)

    def ids(self) -> Iterator[str]:
        """The ids of the stages, in the order in which they run."""
        return (stage.id for stage in self.stages)

    @property
    def product(self) -> str:
        """The model that the workflow ends with."""
        return "rl_student" if "student_rl" in self.ids() else "opd_student"

    def lineage(self, model: str) -> tuple[str, ...]:
        """The ids of the stages behind a model, in order: its own, its teacher's, and those of its stored rollouts."""
        return lineage(self.stages, model)

    @model_validator(mode="after")
    def _sound(self) -> Plan:
        check_stages(self.stages)
        return self


def read_plan(document: dict[str, Any]) -> Plan:
    """A plan that the database has kept.

    Raises:
        InvalidPlan: code "plan_outdated"; another version of s2d made it.
    """
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InvalidPlan(
            "This plan was made by another version of s2d. Ask for a new one with the same request.",
            code="plan_outdated",
            param="plan",
        )
    return Plan.model_validate(document)


def load_plan(text: str | bytes) -> Plan:
    """Read a plan file and check that it is whole.

    Raises:
        InvalidPlan: unknown schema version, a field out of range, or content that no longer matches its id.
    """
    try:
        plan = Plan.model_validate_json(text)
    except ValueError as err:
        raise InvalidPlan(f"This is not a valid {SCHEMA_VERSION} document: {err}", param="plan") from err
    if plan.sealed().id != plan.id:
        raise InvalidPlan(
            "The plan's content does not match its id: it was edited after it was made. Ask for a new plan "
            "with the values you want as options.",
            param="plan",
        )
    return plan
