"""a lost job waits before it is tried again, and knows which of its stages' events are stored"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("available_at", sa.Float(precision=53), nullable=True))
    op.add_column("jobs", sa.Column("events_read", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "events_read")
    op.drop_column("jobs", "available_at")
