"""Plan documents, under the id that their content gives them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from s2d.errors import NotFound
from s2d.plan.document import SCHEMA_VERSION, Plan
from s2d.store.database import db_now
from s2d.store.pages import page
from s2d.store.tables import PlanRow, PlanTenantRow
from s2d.store.tenancy import EVERYBODYS, tenant_of


def put(session: Session, plan: Plan) -> PlanRow:
    """Keep the plan; the same content is kept once, and each tenant that made it has it."""
    row = session.get(PlanRow, plan.id, execution_options=EVERYBODYS)
    if row is None:
        row = PlanRow(id=plan.id, document=plan.model_dump(mode="json"), created_at=db_now())
        session.add(row)
        session.flush()
        session.refresh(row)
    if session.get(PlanTenantRow, (plan.id, tenant_of(session))) is None:
        session.add(PlanTenantRow(plan_id=plan.id, tenant=tenant_of(session)))
        session.flush()
    return row


def get(session: Session, plan_id: str) -> PlanRow:
    """Raises NotFound."""
    row = session.get(PlanRow, plan_id)
    if row is None:
        raise NotFound(f"There is no plan {plan_id!r}.", code="plan_not_found", param="plan")
    return row


class Summary(NamedTuple):
    """What tells one plan from another at a glance: the names of its models as the user gave them, and its seed."""

    teacher: str
    student: str
    seed: int


def summaries(session: Session, plan_ids: Collection[str]) -> dict[str, Summary]:
    """By id, without reading whole documents; of every version."""
    document = PlanRow.document
    columns = (
        document["teacher"]["name"].as_string(),
        document["student"]["name"].as_string(),
        document["seed"].as_integer(),
    )
    query = select(PlanRow.id, *columns).where(PlanRow.id.in_(plan_ids))
    return {row[0]: Summary(*row[1:]) for row in session.execute(query)}


def list_page(session: Session, *, after: str | None, limit: int) -> tuple[Sequence[PlanRow], bool]:
    """Those of this version; an older one cannot be carried out any more."""
    where = [PlanRow.document["schema_version"].as_string() == SCHEMA_VERSION]
    return page(session, PlanRow, after=after, limit=limit, where=where)
