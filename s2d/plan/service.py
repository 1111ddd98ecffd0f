"""From a request to a plan, and a plan checked against the file that it is to run on."""

from __future__ import annotations

from dataclasses import dataclass

from s2d.errors import InvalidPlan, S2DError
from s2d.plan import defaults
from s2d.plan.advice import advise, stage_3_pays
from s2d.plan.allocation import Allocation, allocate
from s2d.plan.cautions import of_allocation, of_data, of_stages
from s2d.plan.compatibility import NOTHING_ADDED, check_models
from s2d.plan.document import Data, Model, Plan, Stage, Warning_
from s2d.plan.gates import GateC2, Gates
from s2d.plan.hardware import from_request
from s2d.plan.machine import Hardware
from s2d.plan.machines import Machines
from s2d.plan.models import ModelPolicy, read_model
from s2d.plan.prompting import Prompting
from s2d.plan.request import DataSummary, PlanRequest
from s2d.plan.stages import build_stages
from s2d.plan.tokens import mean_lengths, token_limits
from s2d.plan.training import Setting


@dataclass(frozen=True)
class Pair:
    """Two models that were read and compared, with what the comparison leaves open."""

    teacher: Model
    student: Model
    warnings: tuple[Warning_, ...]


@dataclass(frozen=True)
class Draft:
    """All that a plan decides, before it is written down as a document."""

    setting: Setting
    allocation: Allocation
    data: DataSummary | None
    labeled: int
    unlabeled: int
    max_prompt_tokens: int
    max_completion_tokens: int
    stages: tuple[Stage, ...]
    warnings: tuple[Warning_, ...]


def make_plan(
    request: PlanRequest,
    data: DataSummary | None,
    hardware: Hardware,
    policy: ModelPolicy,
    machines: Machines | None = None,
) -> Plan:
    """A sealed plan. The same arguments give the same plan, with the same id.

    Args:
        data: the summary of `request.training_file`, None when the request has none.
        hardware: what was detected; `request.hardware` overrides it.
        machines: what is known of how fast machines are; without it times are guessed from datasheets.

    Raises:
        InvalidPlan: the request cannot be met; `param` names the field at fault.
        IncompatiblePair: the two models differ where they must be equal.
        ModelRefused: a model from a place, or of a kind, that is not allowed.
    """
    pair = read_pair(request.teacher, request.student, policy, request.prompt)
    return _document(draft_plan(request, data, hardware, pair, machines))


def read_pair(teacher: str, student: str, policy: ModelPolicy, prompting: Prompting = NOTHING_ADDED) -> Pair:
    """Raises what `make_plan` does for models that cannot be planned for."""
    models = _read(teacher, "teacher", policy), _read(student, "student", policy)
    return Pair(*models, check_models(*models, policy, prompting))


def draft_plan(
    request: PlanRequest,
    data: DataSummary | None,
    hardware: Hardware,
    pair: Pair,
    machines: Machines | None = None,
) -> Draft:
    """`make_plan` without the models' files, which many requests may share, and without the document.

    Raises:
        InvalidPlan: the request cannot be met; `param` names the field at fault.
    """
    teacher, student = pair.teacher, pair.student
    request, strange = _evidence_of_pair(request, pair)
    data = _with_prompting(request, data)
    labeled, unlabeled = _counts(request, data)
    allocation = allocate(labeled, request.labels, _wants_stage_3(request))
    bridge = _bridge(request, allocation, unlabeled)
    prompt, completion = token_limits(request, data, teacher, student)
    setting = Setting(
        request=request,
        teacher=teacher,
        student=student,
        hardware=_hardware(request, hardware, machines),
        labels=allocation.labels,
        bridge_prompts=bridge,
        lengths=mean_lengths(request, data, student, prompt, completion),
        max_prompt=prompt,
        gates=_gates(request, allocation.labels.validation),
    )
    _check_engine(request, setting.hardware)
    stages = build_stages(setting)
    warnings = (
        *pair.warnings,
        *strange,
        *of_allocation(request, allocation),
        *of_data(data, student, prompt, bridge),
        *of_stages(request, stages, allocation.labels),
    )
    return Draft(setting, allocation, data, labeled, unlabeled, prompt, completion, stages, warnings)


def _evidence_of_pair(request: PlanRequest, pair: Pair) -> tuple[PlanRequest, tuple[Warning_, ...]]:
    """Pass rates say nothing of other models than those that they are of."""
    names = pair.teacher.name, pair.student.name
    if request.evidence is None or request.evidence.pair == names:
        return request, ()
    message = f"The pass rates are of {' and '.join(request.evidence.pair)}, not of this pair: they are left out."
    return request.model_copy(update={"evidence": None}), (Warning_(code="evidence_of_others", message=message),)


def _wants_stage_3(request: PlanRequest) -> bool | None:
    """As asked; else not where a probe says that it has nothing to learn from, and by the number of labels."""
    asked = request.student_rl is not None or request.labels.student_rl is not None
    return request.student_rl if asked or stage_3_pays(request.evidence) else False


def _hardware(request: PlanRequest, detected: Hardware, machines: Machines | None) -> Hardware:
    wish = request.hardware
    hardware = from_request(wish, detected)
    # What was measured would hide a speed that is asked for.
    asked = wish.tflops is not None or wish.bandwidth_gbs is not None
    return hardware if machines is None or asked else machines.calibrated(hardware)


def _document(draft: Draft) -> Plan:
    setting, data = draft.setting, draft.data
    request = setting.request
    return Plan(
        seed=request.seed,
        teacher=setting.teacher,
        student=setting.student,
        verifier=request.verifier_spec,
        data=Data(
            file_id=data.file_id if data else None,
            file_sha256=data.sha256 if data else None,
            labeled=draft.labeled,
            unlabeled=draft.unlabeled,
            labels=setting.labels,
            why_teacher=draft.allocation.why_teacher,
            why_student=draft.allocation.why_student,
            bridge_prompts=setting.bridge_prompts,
            split_seed=defaults.derive_seed(request.seed, "split"),
        ),
        hardware=setting.hardware,
        prompt=request.prompt,
        max_prompt_tokens=draft.max_prompt_tokens,
        max_completion_tokens=draft.max_completion_tokens,
        mean_prompt_tokens=round(setting.lengths.prompt, 1),
        mean_completion_tokens=setting.lengths.mean_completion,
        rollout_engine=request.rollout_engine,
        stages=draft.stages,
        gates=setting.gates,
        controls=request.controls,
        warnings=draft.warnings,
        advice=advise(request, draft.labeled, setting.labels, _wants_stage_3(request)),
        evidence=request.evidence,
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


def _read(name: str, role: str, policy: ModelPolicy) -> Model:
    try:
        return read_model(name, policy)
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
