"""A stage reads no label that is not on its own account in the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from s2d.errors import StageFailure
from s2d.rollouts.prompts import Prompt
from s2d.runner.ledger import Ledger
from s2d.stages.runtime import StageRuntime


def check_account(runtime: StageRuntime, problems: Sequence[Prompt]) -> None:
    """Raises StageFailure, code "label_spent": a row belongs to another stage, or to none."""
    stage = runtime.stage
    entries = Ledger(runtime.layout.ledger).read()
    own = {entry.label for entry in entries if (entry.arm, entry.stage) == (stage.arm, stage.id)}
    strange = [problem.row_id for problem in problems if problem.row_id not in own]
    if strange:
        owners = {entry.label: f"{entry.role} ({entry.stage})" for entry in entries}
        raise StageFailure(
            f"{stage.id} would read {len(strange)} labels that are not on its account, first {strange[0]}, which "
            f"belongs to {owners.get(strange[0], 'no stage')}: the job's data folder was changed.",
            code="label_spent",
        )
