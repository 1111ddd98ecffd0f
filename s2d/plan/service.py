"""From a request to a plan, and a plan checked against the file that it is to run on."""

from __future__ import annotations

from collections.abc import Iterator

from s2d.errors import InvalidPlan, S2DError
from s2d.plan import defaults
from s2d.plan.allocation import Allocation, allocate
from s2d.plan.compatibility import check_models
from s2d.plan.document import (
    Data,
    GateC2,
    Gates,
    Grpo,
    Hardware,
    LabelAllocation,
    Model,
    Plan,
    Stage,
    Training,
    Warning_,
)
from s2d.plan.hardware import from_request
from s2d.plan.models import ModelPolicy, read_model
from s2d.plan.request import DataSummary, PlanRequest
from s2d.plan.stages import build_stages
from s2d.plan.timing import Lengths
from s2d.plan.training import Setting

#: Fewer distinct prompts than this make a thin bridge.
FEW_BRIDGE_PROMPTS = 512
#: Fewer problems in one GRPO step than this often leave a step without any signal.
FEW_GROUPS = 8
#: Characters per token: word pieces, or about one per character where the vocabulary is that small.
CHARS_PER_TOKEN, SMALL_VOCABULARY = 3.5, 1024
#: Mean prompt length where nothing is known of the data, tokens.
UNKNOWN_PROMPT = 150
TEMPLATE_TOKENS = 16
LONG_SECONDS = 7 * 86_400


def make_plan(request: PlanRequest, data: DataSummary | None, hardware: Hardware, policy: ModelPolicy) -> Plan:
    """A sealed plan. The same arguments give the same plan, with the same id.

    Args:
        data: the summary of `request.training_file`, None when the request has none.
        hardware: what was detected; `request.hardware` overrides it.

    Raises:
        InvalidPlan: the request cannot be met; `param` names the field at fault.
        IncompatiblePair: the two models differ where they must be equal.
        ModelRefused: a model from a place, or of a kind, that is not allowed.
    """
    teacher, student = (_read(request, role, policy) for role in ("teacher", "student"))
    warnings = check_models(teacher, student, policy)
    data = _with_prompting(request, data)
    labeled, unlabeled = _counts(request, data)
    allocation = allocate(labeled, request.labels, request.student_rl)
    bridge = _bridge(request, allocation, unlabeled)
    prompt, completion = _token_limits(request, data, teacher, student)
    setting = Setting(
        request=request,
        teacher=teacher,
        student=student,
        hardware=from_request(request.hardware, hardware),
        labels=allocation.labels,
        bridge_prompts=bridge,
        lengths=Lengths(min(prompt, _tokens(data.mean_prompt_chars, student) if data else UNKNOWN_PROMPT), completion),
        max_tokens=prompt + completion,
        gates=_gates(request, allocation.labels.validation),
    )
    _check_engine(request, setting.hardware)
    stages = build_stages(setting)
    return Plan(
        seed=request.seed,
        teacher=teacher,
        student=student,
        verifier=request.verifier_spec,
        data=Data(
            file_id=data.file_id if data else None,
            file_sha256=data.sha256 if data else None,
            labeled=labeled,
            unlabeled=unlabeled,
            labels=allocation.labels,
            bridge_prompts=bridge,
            split_seed=defaults.derive_seed(request.seed, "split"),
        ),
        hardware=setting.hardware,
        prompt=request.prompt,
        max_prompt_tokens=prompt,
        max_completion_tokens=completion,
        rollout_engine=request.rollout_engine,
        stages=stages,
        gates=setting.gates,
        controls=request.controls,
        warnings=(
            *warnings,
            *_allocation_warnings(request, allocation),
            *_data_warnings(data, student, prompt, bridge),
            *_stage_warnings(request, stages, allocation.labels),
        ),
    ).sealed()


def _with_prompting(request: PlanRequest, data: DataSummary | None) -> DataSummary | None:
    """The summary of the prompts as the models will see them."""
    added = len(request.prompt.system or "") + len(request.prompt.suffix or "")
    if data is None or not added:
        return data
    longer = {name: getattr(data, name) + added for name in ("mean_prompt_chars", "p95_prompt_chars")}
    return data.model_copy(update=longer)


def check_against_data(plan: Plan, labeled: int, unlabeled: int) -> None:
    """Does a file with so many rows hold what the plan counts on?

    Raises:
        InvalidPlan: too few labels, or too few prompts for the bridge.
    """
    labels = plan.data.labels
    if labeled < labels.total:
        raise InvalidPlan(
            f"The plan uses {labels.total:,} labels and the file has {labeled:,}: add labeled rows, or make a plan for "
            "this file.",
            param="training_file",
        )
    prompts = labels.teacher_rl + unlabeled
    if prompts < plan.data.bridge_prompts:
        raise InvalidPlan(
            f"The plan's bridge uses {plan.data.bridge_prompts:,} prompts and the file has {prompts:,} for it "
            f"({labels.teacher_rl:,} of stage 1 and {unlabeled:,} without an answer): add unlabeled rows, or make a "
            "plan for this file.",
            param="training_file",
        )


def _check_engine(request: PlanRequest, hardware: Hardware) -> None:
    if request.rollout_engine == "vllm" and hardware.device == "cpu":
        raise InvalidPlan(
            "rollout_engine: vllm needs a GPU; on CPU the rollouts of a job are drawn with transformers.",
            param="rollout_engine",
        )


def _read(request: PlanRequest, role: str, policy: ModelPolicy) -> Model:
    try:
        return read_model(getattr(request, role), policy)
    except S2DError as err:
        err.param = role
        raise


def _counts(request: PlanRequest, data: DataSummary | None) -> tuple[int, int]:
    """Labeled and unlabeled rows that the plan may use."""
    if (data is None) != (request.training_file is None):
        raise InvalidPlan("A data summary goes with a training_file, and only with one.", param="training_file")
    if data is None:
        return request.labeled_budget or 0, request.unlabeled_prompts or 0
    if request.labeled_budget is None:
        return data.labeled, data.unlabeled
    if request.labeled_budget > data.labeled:
        raise InvalidPlan(
            f"labeled_budget is {request.labeled_budget:,} and the file has {data.labeled:,} labeled rows.",
            param="labeled_budget",
        )
    return request.labeled_budget, data.unlabeled


def _bridge(request: PlanRequest, allocation: Allocation, unlabeled: int) -> int:
    available = allocation.labels.teacher_rl + unlabeled
    if request.bridge_prompts is None:
        return min(available, defaults.MAX_BRIDGE_PROMPTS)
    if request.bridge_prompts > available:
        raise InvalidPlan(
            f"bridge_prompts is {request.bridge_prompts:,} and there are {available:,}: the "
            f"{allocation.labels.teacher_rl:,} problems of stage 1 and {unlabeled:,} without an answer.",
            param="bridge_prompts",
        )
    return request.bridge_prompts


def _token_limits(request: PlanRequest, data: DataSummary | None, teacher: Model, student: Model) -> tuple[int, int]:
    """Longest prompt and completion, within the shorter context of the two models."""
    context = min(teacher.context, student.context)
    wanted = defaults.MAX_PROMPT
    if data is not None:
        wanted = max(256, -(-int(1.5 * _tokens(data.p95_prompt_chars, student)) // 64) * 64)
    room = context - (request.max_completion_tokens or 1)
    prompt = request.max_prompt_tokens or max(1, min(wanted, context // 2, room))
    completion = request.max_completion_tokens or max(1, min(defaults.MAX_COMPLETION, context - prompt))
    if prompt + completion > context:
        raise InvalidPlan(
            f"max_prompt_tokens ({prompt:,}) and max_completion_tokens ({completion:,}) are more than the models' "
            f"context of {context:,} tokens.",
            param="max_completion_tokens",
        )
    return prompt, completion


def _tokens(chars: float, model: Model) -> float:
    """Tokens of a prompt of so many characters: a rough guess without the tokenizer."""
    return chars / (1 if model.vocab_size < SMALL_VOCABULARY else CHARS_PER_TOKEN) + TEMPLATE_TOKENS


def _gates(request: PlanRequest, validation: int) -> Gates:
    c2 = request.gates.c2 or GateC2()
    if "prompts" not in c2.model_fields_set:
        c2 = c2.model_copy(update={"prompts": min(c2.prompts, validation)})
    if c2.prompts > validation:
        raise InvalidPlan(
            f"gates.c2.prompts is {c2.prompts} and there are {validation} validation problems to draw them from.",
            param="gates.c2.prompts",
        )
    standard = Gates(c2=c2, on_failure=request.on_gate_failure)
    return standard if request.gates.c1 is None else standard.model_copy(update={"c1": request.gates.c1})


def _allocation_warnings(request: PlanRequest, allocation: Allocation) -> tuple[Warning_, ...]:
    if request.labels.student_rl == 0:  # leaving stage 3 out was asked for
        return tuple(warning for warning in allocation.warnings if warning.code != "no_student_rl")
    return allocation.warnings


def _data_warnings(data: DataSummary | None, student: Model, prompt: int, bridge: int) -> tuple[Warning_, ...]:
    found = []
    if bridge < FEW_BRIDGE_PROMPTS:
        found.append(
            Warning_(
                code="few_bridge_prompts",
                message=f"The bridge has {bridge:,} distinct prompts. Prompts without answers cost no labels and help "
                "it most: add unlabeled rows.",
            )
        )
    if data is not None and _tokens(data.p95_prompt_chars, student) > prompt:
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


def _stage_warnings(
    request: PlanRequest, stages: tuple[Stage, ...], allocated: LabelAllocation
) -> tuple[Warning_, ...]:
    found = []
    if request.rollout_engine == "vllm":
        found.append(
            Warning_(
                code="vllm_not_modelled",
                message="Rollouts are drawn with vLLM, which takes GPU memory of its own: the memory ranges leave it "
                "out, and the time ranges are those of transformers, which is slower.",
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
