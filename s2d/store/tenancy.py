"""Whose rows a session sees: with a tenant, every ORM statement is confined to that tenant's, and new rows are its own.

In one place and not in each query, so that none can forget it. It does not confine SQL on bare tables, nor the rows
that hang on a job (events, ledger, outbox): whoever reads those has fetched the job first.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event, select
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria

from s2d.store.tables import DEFAULT_TENANT, Owned, PlanRow, PlanTenantRow

#: The execution option for a statement that must see every tenant's rows.
EVERYBODYS = {"s2d_every_tenant": True}


def bind(session: Session, tenant: str | None) -> None:
    """Confine a new session to one tenant; None is the service itself, which sees everything."""
    session.info["tenant"] = tenant


def tenant_of(session: Session) -> str:
    """Whose new rows are."""
    return session.info.get("tenant") or DEFAULT_TENANT


@event.listens_for(Session, "do_orm_execute")
def _confine(state: ORMExecuteState) -> None:
    tenant = state.session.info.get("tenant")
    if tenant is None or state.is_column_load or state.execution_options.get("s2d_every_tenant"):
        return
    plans = select(PlanTenantRow.plan_id).where(PlanTenantRow.tenant == tenant)
    state.statement = state.statement.options(
        with_loader_criteria(Owned, lambda table: table.tenant == tenant, include_aliases=True),
        with_loader_criteria(PlanRow, PlanRow.id.in_(plans), include_aliases=True),
    )


@event.listens_for(Session, "before_flush")
def _own(session: Session, *_: Any) -> None:
    for row in session.new:
        if isinstance(row, Owned) and row.tenant is None:
            row.tenant = tenant_of(session)
