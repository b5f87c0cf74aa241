"""What a worker's machine has, what a stage is expected to take, and what finished ones took."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UP = """
ALTER TABLE workers
    ADD COLUMN host_memory_bytes BIGINT,
    ADD COLUMN cores INTEGER,
    ADD COLUMN disk_free_bytes BIGINT;
ALTER TABLE stages ADD COLUMN machine TEXT, ADD COLUMN estimate JSONB;
CREATE TABLE stage_costs (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    machine TEXT NOT NULL,
    kind TEXT NOT NULL,
    raw_seconds DOUBLE PRECISION NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    raw_memory_bytes BIGINT NOT NULL,
    memory_bytes BIGINT NOT NULL,
    at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT stage_costs_pkey PRIMARY KEY (id)
);
CREATE INDEX stage_costs_machine_kind_id_idx ON stage_costs (machine, kind, id);
"""

DOWN = """
DROP TABLE stage_costs;
ALTER TABLE stages DROP COLUMN machine, DROP COLUMN estimate;
ALTER TABLE workers DROP COLUMN host_memory_bytes, DROP COLUMN cores, DROP COLUMN disk_free_bytes;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
