"""A stage reads no label that is not on its own account in the ledger, and the bridge no problem that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from s2d.data.split import Role, SplitReport
from s2d.errors import StageFailure
from s2d.runner.ledger import Ledger
from s2d.stages.runtime import StageRuntime

#: Not even their prompts are for the bridge: what judges a model, and what stage 3 has kept back.
HELD_OUT: Final[tuple[Role, ...]] = ("validation", "test", "student_rl")


class Labeled(Protocol):
    """A problem that came from a row."""

    @property
    def row_id(self) -> str: ...


def check_account(runtime: StageRuntime, problems: Sequence[Labeled]) -> None:
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


def check_bridge(runtime: StageRuntime, prompts: Sequence[Labeled]) -> None:
    """The bridge's prompts are on no account of its own, as their answers are not read; held-out ones it may not see.

    Raises:
        StageFailure: code "label_spent"; a prompt has another use in the job's split.
    """
    split = SplitReport.model_validate_json((runtime.layout.data / "split.json").read_text())
    uses = {label: role for role in HELD_OUT for label in split.ids[role]}
    strange = [prompt.row_id for prompt in prompts if prompt.row_id in uses]
    if strange:
        raise StageFailure(
            f"{runtime.stage.id} would read {len(strange)} prompts that are held out from the bridge, first "
            f"{strange[0]}, which belongs to {uses[strange[0]]}: the job's data folder was changed.",
            code="label_spent",
        )
