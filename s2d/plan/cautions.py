"""What a user should know before paying for a job: the plan's warnings about labels, data and stages."""

from __future__ import annotations

from collections.abc import Iterator

from s2d.plan.allocation import Allocation
from s2d.plan.document import Grpo, LabelAllocation, Model, Stage, Training, Warning_
from s2d.plan.request import DataSummary, PlanRequest
from s2d.plan.tokens import TEMPLATE_TOKENS, tokens_of

#: Fewer distinct prompts than this make a thin bridge.
FEW_BRIDGE_PROMPTS = 512
#: Fewer problems in one GRPO step than this often leave a step without any signal.
FEW_GROUPS = 8
LONG_SECONDS = 7 * 86_400


def of_allocation(request: PlanRequest, allocation: Allocation) -> tuple[Warning_, ...]:
    if request.labels.student_rl == 0:  # leaving stage 3 out was asked for
        return tuple(warning for warning in allocation.warnings if warning.code != "no_student_rl")
    return allocation.warnings


def of_data(data: DataSummary | None, student: Model, prompt: int, bridge: int) -> tuple[Warning_, ...]:
    found = []
    if bridge < FEW_BRIDGE_PROMPTS:
        found.append(
            Warning_(
                code="few_bridge_prompts",
                message=f"The bridge has {bridge:,} distinct prompts. Prompts without answers cost no labels: add "
                "unlabeled rows.",
            )
        )
    if data is None and prompt <= TEMPLATE_TOKENS:
        found.append(
            Warning_(
                code="short_prompts",
                message=f"Prompts of more than {prompt:,} tokens are dropped, and a chat template alone takes about "
                f"{TEMPLATE_TOKENS}: few or none may be left.",
            )
        )
    if data is not None and tokens_of(data.p95_prompt_chars, student) > prompt:
        found.append(
            Warning_(
                code="long_prompts",
                message=f"One prompt in twenty or more may be over max_prompt_tokens ({prompt:,}) and be dropped.",
            )
        )
    return tuple(found)


def _thin_stages(stages: tuple[Stage, ...], allocated: LabelAllocation) -> Iterator[Warning_]:
    """GRPO stages that do not come to all of their labels, or whose steps rest on very few groups."""
    for stage in stages:
        if not isinstance(stage, Grpo):
            continue
        drawn = stage.steps * stage.prompts_per_step
        labels = sum(getattr(allocated, role) for role in stage.label_roles)
        if drawn < labels:
            yield Warning_(
                code="unread_labels",
                message=f"{stage.kind} draws {drawn:,} of its {labels:,} labels: give it more steps or prompts a step, "
                "or give the labels to another use.",
            )
        if stage.prompts_per_step < FEW_GROUPS:
            yield Warning_(
                code="few_groups",
                message=f"{stage.kind} has {stage.prompts_per_step} problems a step: groups that are all right or all "
                "wrong teach nothing, so many steps may do little. More memory, LoRA or shorter completions give more.",
            )


def of_stages(request: PlanRequest, stages: tuple[Stage, ...], allocated: LabelAllocation) -> tuple[Warning_, ...]:
    found = []
    if request.rollout_engine == "vllm":
        found.append(
            Warning_(
                code="vllm_not_modelled",
                message="Rollouts are drawn with vLLM: the time ranges are those of transformers, which is slower.",
            )
        )
    adapted = [stage.kind for stage in stages if isinstance(stage, Training) and stage.lora is not None]
    if adapted and request.lora is None:
        found.append(
            Warning_(
                code="lora_chosen",
                message=f"Full fine-tuning of {', '.join(adapted)} does not fit in memory: LoRA is used there.",
            )
        )
    found += _thin_stages(stages, allocated)
    low, high = (sum(getattr(stage.estimate.seconds, end) for stage in stages) for end in ("low", "high"))
    if high > LONG_SECONDS:
        found.append(
            Warning_(
                code="long_job",
                message=f"The job may take {low / 86_400:.1f} to {high / 86_400:.1f} days on this hardware.",
            )
        )
    return tuple(found)
