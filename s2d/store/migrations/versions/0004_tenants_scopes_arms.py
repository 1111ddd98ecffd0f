"""whose things are, what a key may do, the students of a job's control arms, what a client asked of a job"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: Whose everything was until now.
FIRST = "default"


def upgrade() -> None:
    # Until now every key could do everything.
    op.add_column("api_keys", sa.Column("tenant", sa.String(length=40), nullable=False, server_default=FIRST))
    op.add_column("api_keys", sa.Column("scopes", sa.String(length=100), nullable=False, server_default="admin"))
    op.add_column("api_keys", sa.Column("requests_per_min", sa.Integer(), nullable=True))
    for table in ("files", "jobs"):
        op.add_column(table, sa.Column("tenant", sa.String(length=40), nullable=False, server_default=FIRST))
        op.create_index(f"ix_{table}_tenant_created_at", table, ["tenant", "created_at"])
    op.add_column("jobs", sa.Column("request", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("jobs", sa.Column("traceparent", sa.String(length=55), nullable=True))
    _share_plans()
    _name_arms()


def _share_plans() -> None:
    """A plan's id is its content, so two tenants may have the same one; each sees only that it has it itself."""
    table = op.create_table(
        "plan_tenants",
        sa.Column("plan_id", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name="fk_plan_tenants_plan_id"),
        sa.PrimaryKeyConstraint("plan_id", "tenant", name="pk_plan_tenants"),
    )
    plans = sa.select(sa.table("plans", sa.column("id")).c.id, sa.literal(FIRST))
    op.execute(sa.insert(table).from_select(["plan_id", "tenant"], plans))


def _name_arms() -> None:
    """Until now a job had one student, its workflow's."""
    op.rename_table("students", "students_before")
    # PostgreSQL keeps the names of a renamed table's constraints.
    table = op.create_table(
        "students",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("arm", sa.String(length=40), nullable=False),
        sa.Column("tenant", sa.String(length=40), nullable=False),
        sa.Column("path", sa.String(length=2000), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_students_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_students_of_arms"),
        sa.UniqueConstraint("job_id", "arm", name="uq_students_job_id_arm"),
    )
    before = sa.table("students_before", *map(sa.column, ("id", "job_id", "path", "created_at")))
    rows = sa.select(
        before.c.id, before.c.job_id, sa.literal("workflow"), sa.literal(FIRST), before.c.path, before.c.created_at
    )
    op.execute(sa.insert(table).from_select(["id", "job_id", "arm", "tenant", "path", "created_at"], rows))
    op.drop_table("students_before")


def downgrade() -> None:
    """The control arms' students are lost, and everything is everybody's again."""
    op.rename_table("students", "students_of_arms")
    table = op.create_table(
        "students",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("path", sa.String(length=2000), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_students_job"),
        sa.PrimaryKeyConstraint("id", name="pk_students"),
        sa.UniqueConstraint("job_id", name="uq_students_job_id"),
    )
    columns = ["id", "job_id", "path", "created_at"]
    after = sa.table("students_of_arms", *map(sa.column, (*columns, "arm")))
    rows = sa.select(*(after.c[name] for name in columns)).where(after.c.arm == "workflow")
    op.execute(sa.insert(table).from_select(columns, rows))
    op.drop_table("students_of_arms")
    op.drop_table("plan_tenants")
    op.drop_column("jobs", "traceparent")
    op.drop_column("jobs", "request")
    for table_name in ("jobs", "files"):
        op.drop_index(f"ix_{table_name}_tenant_created_at", table_name=table_name)
        op.drop_column(table_name, "tenant")
    for column in ("requests_per_min", "scopes", "tenant"):
        op.drop_column("api_keys", column)
