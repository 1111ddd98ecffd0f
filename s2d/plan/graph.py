"""How the stages of a plan hang together: which stages are behind a model, and what a sound order is.

Duck-typed on the stage documents, so that `document` can check itself with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

#: The arm of the four stages themselves.
WORKFLOW = "workflow"
#: What the student before any stage is called where arms are listed; no stage is of it.
BASE = "base"
#: The models that are there before the first stage.
BASE_MODELS = ("base_teacher", "base_student")


class Account(NamedTuple):
    """Who spends a label: a stage of an arm. A control spends the same labels as the workflow, in its place."""

    arm: str
    stage: str


def made_by(stage: Any) -> str | None:
    """The model that a stage makes, if any."""
    made: str | None = getattr(stage, "trains", None) or getattr(stage, "keeps_as", None)
    return made


def products(stages: Sequence[Any]) -> dict[str, str]:
    """Arm -> the model that it ends with, in the order of the stages. The candidates of a selection end nothing."""
    tried = {name for stage in stages for name in getattr(stage, "candidates", ())}
    return {stage.arm: made for stage in stages if (made := made_by(stage)) and made not in tried}


def base_of(stages: Sequence[Any], model: str) -> str:
    """The base model that a model goes back to."""
    while model not in BASE_MODELS:
        stage = next(one for one in stages if made_by(one) == model)
        model = getattr(stage, "starts_from", None) or stage.candidates[0]
    return model


def models_read(stage: Any) -> tuple[str, ...]:
    """The models that a stage needs."""
    one = (getattr(stage, name, None) for name in ("starts_from", "teacher", "compute_of"))
    many = (*getattr(stage, "candidates", ()), *getattr(stage, "models", ()))
    return (*(name for name in one if name), *many)


def stages_read(stage: Any) -> tuple[str, ...]:
    """The stages whose results a stage needs."""
    rollouts = getattr(stage, "rollouts", None)
    return (*((rollouts,) if rollouts else ()), *getattr(stage, "matches", ()))


def labels_read(stage: Any) -> tuple[str, ...]:
    """The uses of labels that a stage has: each is spent by one stage of an arm."""
    if stage.kind == "evaluate":
        return ("test",)
    judges = stage.kind == "select" or (stage.kind == "teacher_rollouts" and stage.arm == WORKFLOW)
    return ("validation",) if judges else tuple(getattr(stage, "label_roles", ()))


def lineage(stages: Sequence[Any], model: str) -> tuple[str, ...]:
    """Ids of the stages behind `model`, each once, in order. A base model has none."""
    if model in BASE_MODELS:
        return ()
    stage = next(one for one in stages if made_by(one) == model)
    sources = [getattr(stage, "starts_from", None), getattr(stage, "teacher", None), *getattr(stage, "candidates", ())]
    before = [name for source in sources if source for name in lineage(stages, source)]
    rollouts = getattr(stage, "rollouts", None)
    if rollouts is not None:
        drawn = next(one for one in stages if one.id == rollouts)
        before += [*lineage(stages, drawn.teacher), rollouts]
    return tuple(dict.fromkeys([*before, stage.id]))


def trunk(stages: Sequence[Any], model: str, chosen: Mapping[str, str]) -> tuple[str, ...]:
    """The lineage of a model without the candidates that were not taken.

    Args:
        chosen: stage of the kind `select` -> the candidate that it kept.
    """
    stage = next((one for one in stages if made_by(one) == model), None)
    if stage is None:
        return ()
    if stage.id in chosen:
        return trunk(stages, chosen[stage.id], chosen)
    before = trunk(stages, stage.starts_from, chosen) if getattr(stage, "starts_from", None) else ()
    others = [name for name in lineage(stages, model) if name not in lineage(stages, stage.starts_from)]
    return tuple(dict.fromkeys([*before, *others]))


def check_stages(stages: Iterable[Any]) -> None:
    """Everything that a stage reads is there before it, nothing is made twice, and no arm spends a label twice.

    Raises:
        ValueError: what is wrong, in words.
    """
    seen: set[str] = set()
    models: set[str] = set(BASE_MODELS)
    spent: set[tuple[str, str]] = set()
    for stage in stages:
        if stage.id in seen:
            raise ValueError(f"two stages are named {stage.id}")
        missing = [*(set(models_read(stage)) - models), *(set(stages_read(stage)) - seen)]
        if missing:
            raise ValueError(f"stage {stage.id} needs {', '.join(sorted(missing))} from an earlier stage")
        for role in labels_read(stage):
            if (stage.arm, role) in spent:
                raise ValueError(f"stage {stage.id} would spend the {role} labels of arm {stage.arm} a second time")
            spent.add((stage.arm, role))
        made = made_by(stage)
        if made in models:
            raise ValueError(f"stage {stage.id} makes {made}, which is there already")
        seen.add(stage.id)
        models.update(filter(None, (made,)))
