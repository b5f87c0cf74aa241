"""What kind of machine an attempt ran on: its time has a price."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE attempts ADD COLUMN device TEXT, ADD COLUMN gpu_kind TEXT")


def downgrade() -> None:
    op.execute("ALTER TABLE attempts DROP COLUMN device, DROP COLUMN gpu_kind")
