"""What a stage took of a GPU, beside what it took of the host."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE stages ADD COLUMN peak_gpu_memory_bytes BIGINT")


def downgrade() -> None:
    op.execute("ALTER TABLE stages DROP COLUMN peak_gpu_memory_bytes")
