"""Plans: made from a request, kept under the id of their content."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.exc import IntegrityError

from s2d.data.summary import summarize
from s2d.plan.document import Plan, read_plan
from s2d.plan.hardware import detect
from s2d.plan.machines import Machines
from s2d.plan.request import DataSummary, PlanRequest
from s2d.plan.service import make_plan
from s2d.plan.whatif import WhatIf, WhatIfRequest, what_if
from s2d.services import files
from s2d.services.context import Context
from s2d.store import plans
from s2d.store.tables import PlanRow

#: Rows of one answer: a second or two of one process.
MOST_ROWS = 2000


def create(ctx: Context, request: PlanRequest) -> Plan:
    """Make and keep a plan.

    Raises:
        InvalidPlan, IncompatiblePair, ModelRefused: see `s2d.plan.service.make_plan`.
        NotFound: no such training_file.
    """
    data = _summary(ctx, request.training_file, "training_file") if request.training_file else None
    machines = Machines.of_state(ctx.settings.state_dir)
    plan = make_plan(request, data, detect(), ctx.settings.model_policy, machines)
    try:
        _keep(ctx, plan)
    except IntegrityError:
        # The same plan was kept at the same moment (PostgreSQL; SQLite has one writer).
        get(ctx, plan.id)
    return plan


def compare(ctx: Context, request: WhatIfRequest) -> WhatIf:
    """What plans would be for every combination of the varied values; none of them is kept.

    Raises:
        InvalidPlan: more than `MOST_ROWS` rows.
        NotFound: no such training_file.
    """
    file = request.plan.training_file
    data = _summary(ctx, file, "plan.training_file") if file else None
    machines = Machines.of_state(ctx.settings.state_dir)
    rows = what_if(request, data, detect(), ctx.settings.model_policy, machines, most=MOST_ROWS)
    return WhatIf(varied=request.varied, rows=tuple(rows))


def _keep(ctx: Context, plan: Plan) -> None:
    with ctx.db.begin() as session:
        plans.put(session, plan)


def _summary(ctx: Context, file_id: str, param: str) -> DataSummary:
    row = files.get(ctx, file_id, param=param)
    counted = summarize(files.rows_path(ctx, file_id))
    return DataSummary(
        file_id=row.id,
        sha256=row.sha256,
        labeled=row.labeled,
        unlabeled=row.unlabeled,
        mean_prompt_chars=counted.prompt_chars_mean,
        p95_prompt_chars=counted.prompt_chars_p95,
    )


def get(ctx: Context, plan_id: str) -> Plan:
    """Raises NotFound, and InvalidPlan for a plan of another version."""
    with ctx.db.read() as session:
        return read_plan(plans.get(session, plan_id).document)


def list_page(ctx: Context, *, after: str | None, limit: int) -> tuple[Sequence[PlanRow], bool]:
    with ctx.db.read() as session:
        return plans.list_page(session, after=after, limit=limit)
