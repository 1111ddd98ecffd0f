"""A plan's models looked at once more when its job starts: days may have passed, and folders change."""

from __future__ import annotations

from s2d.errors import InvalidPlan
from s2d.plan.compatibility import check_models
from s2d.plan.document import Model, Plan
from s2d.plan.models import ModelPolicy, fetch_tokenizer, read_model


def check_models_again(plan: Plan, policy: ModelPolicy) -> None:
    """Refuse models that the policy does not allow (any more), that changed, or that do not fit together.

    The full comparison of tokenizers and templates needs their files, so for hub models it happens here.

    Raises:
        ModelRefused, IncompatiblePair, InvalidPlan.
    """
    for model in (plan.teacher, plan.student):
        if model.source == "local":
            _unchanged(model, read_model(model.name, policy))
        else:
            fetch_tokenizer(model, policy)
    check_models(plan.teacher, plan.student, policy, plan.prompt)


def _unchanged(planned: Model, found: Model) -> None:
    if found.config_hash != planned.config_hash:
        raise InvalidPlan(
            f"{planned.name} is another model now than when the plan was made: its config.json differs. Plan again.",
            param="plan",
        )
