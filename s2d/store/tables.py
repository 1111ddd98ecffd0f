"""The tables. Text ids carry their kind as a prefix; JSON columns hold documents that SQL never looks into."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: Whose everything is where nobody has named a tenant.
DEFAULT_TENANT = "default"


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON(none_as_null=True)}


class Owned:
    """Rows that are one tenant's; see `s2d.store.tenancy`."""

    tenant: Mapped[str] = mapped_column(String(40), server_default=DEFAULT_TENANT)


class ApiKeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    tenant: Mapped[str] = mapped_column(String(40), server_default=DEFAULT_TENANT)
    # Names of `s2d.store.keys.SCOPES`, with spaces between.
    scopes: Mapped[str] = mapped_column(String(100), server_default="admin")
    requests_per_min: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[float] = mapped_column(Float(53))
    revoked_at: Mapped[float | None] = mapped_column(Float(53))


class FileRow(Owned, Base):
    __tablename__ = "files"
    __table_args__ = (Index("ix_files_tenant_created_at", "tenant", "created_at"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    filename: Mapped[str] = mapped_column(String(500))
    purpose: Mapped[str] = mapped_column(String(40))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    labeled: Mapped[int] = mapped_column(Integer)
    unlabeled: Mapped[int] = mapped_column(Integer)
    report: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(Float(53), index=True)


class PlanRow(Base):
    __tablename__ = "plans"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    document: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(Float(53), index=True)


class PlanTenantRow(Base):
    """A plan's id is its content, so several tenants may have the same one; each sees only its own having it."""

    __tablename__ = "plan_tenants"

    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(40), primary_key=True)


class JobRow(Owned, Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state_lease", "state", "lease_expires_at"),
        Index("ix_jobs_tenant_created_at", "tenant", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(200))
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"))
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"))
    state: Mapped[str] = mapped_column(String(20))
    # Fencing token: each claim adds one, and every later write must carry the newest.
    epoch: Mapped[int] = mapped_column(Integer, default=0)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    worker: Mapped[str | None] = mapped_column(String(200))
    # Workers lost in a row without getting further than `reached`, which `s2d.store.events.reached` counts.
    losses: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    reached: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    lease_expires_at: Mapped[float | None] = mapped_column(Float(53))
    # A lost job waits until then before it is tried again; null: it need not wait.
    available_at: Mapped[float | None] = mapped_column(Float(53))
    # Where the last stored event of a stage ends (`s2d.events.Origin`): whoever takes the job over reads on there.
    events_read: Mapped[dict[str, Any] | None]
    # Names the last write of events: one that is tried again after a lost answer is stored once.
    last_write: Mapped[str | None] = mapped_column(String(32))
    last_seq: Mapped[int] = mapped_column(Integer, default=0)
    progress: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None]
    student_id: Mapped[str | None] = mapped_column(String(200))
    # What a client of the OpenAI surface sent and wants to see again: suffix, metadata, method.
    request: Mapped[dict[str, Any] | None]
    # W3C trace context of the request that made the job; its worker's and stages' spans continue that trace.
    traceparent: Mapped[str | None] = mapped_column(String(55))
    created_at: Mapped[float] = mapped_column(Float(53), index=True)
    started_at: Mapped[float | None] = mapped_column(Float(53))
    finished_at: Mapped[float | None] = mapped_column(Float(53))


class EventRow(Base):
    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    epoch: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[float] = mapped_column(Float(53))
    type: Mapped[str] = mapped_column(String(40))
    level: Mapped[str] = mapped_column(String(10))
    stage: Mapped[str | None] = mapped_column(String(40))
    step: Mapped[int | None] = mapped_column(Integer)
    message: Mapped[str] = mapped_column(String(4000))
    data: Mapped[dict[str, Any]]


class LedgerRow(Base):
    """One arm of a job, one label, one use: the primary key makes spending a label twice impossible."""

    __tablename__ = "label_ledger"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    arm: Mapped[str] = mapped_column(String(40), primary_key=True)
    label_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    stage: Mapped[str] = mapped_column(String(40))
    role: Mapped[str] = mapped_column(String(20))


class OutboxRow(Base):
    """A message that must reach the broker; written in the transaction that made it necessary."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[float] = mapped_column(Float(53))
    sent_at: Mapped[float | None] = mapped_column(Float(53), index=True)


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"

    scope: Mapped[str] = mapped_column(String(80), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[float] = mapped_column(Float(53))


class StudentRow(Owned, Base):
    """What one arm of a job ended with; `arm` is "workflow", "base", or the control's name."""

    __tablename__ = "students"
    __table_args__ = (UniqueConstraint("job_id", "arm"),)

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    arm: Mapped[str] = mapped_column(String(40))
    path: Mapped[str] = mapped_column(String(2000))
    created_at: Mapped[float] = mapped_column(Float(53))
