"""the ledger names the arm and the stage that spent a label"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

#: Until now a job had one arm, and a use told the stage.
STAGES = {"validation": "teacher_rollouts", "test": "evaluate"}


def upgrade() -> None:
    op.rename_table("label_ledger", "label_ledger_before")
    table = op.create_table(
        "label_ledger",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("arm", sa.String(length=40), nullable=False),
        sa.Column("label_id", sa.String(length=40), nullable=False),
        sa.Column("stage", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_label_ledger_job_id"),
        sa.PrimaryKeyConstraint("job_id", "arm", "label_id", name="pk_label_ledger_arms"),
    )
    before = sa.table("label_ledger_before", sa.column("job_id"), sa.column("label_id"), sa.column("role"))
    stage = sa.case(*((before.c.role == role, stage) for role, stage in STAGES.items()), else_=before.c.role)
    rows = sa.select(before.c.job_id, sa.literal("workflow"), before.c.label_id, stage, before.c.role)
    op.execute(sa.insert(table).from_select(["job_id", "arm", "label_id", "stage", "role"], rows))
    op.drop_table("label_ledger_before")


def downgrade() -> None:
    """The controls' accounts are lost: the older schema has no place for them."""
    op.rename_table("label_ledger", "label_ledger_of_arms")
    table = op.create_table(
        "label_ledger",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("label_id", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_label_ledger_job"),
        sa.PrimaryKeyConstraint("job_id", "label_id", name="pk_label_ledger"),
    )
    columns = ("job_id", "label_id", "role")
    after = sa.table("label_ledger_of_arms", *map(sa.column, (*columns, "arm")))
    rows = sa.select(*(after.c[name] for name in columns)).where(after.c.arm == "workflow")
    op.execute(sa.insert(table).from_select(list(columns), rows))
    op.drop_table("label_ledger_of_arms")
