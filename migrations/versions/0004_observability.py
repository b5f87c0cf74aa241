"""What lists of many jobs and monitoring need: indexes of filters, the request behind a job, counters that last.

`pg_trgm` comes with PostgreSQL; whoever owns the database may create it.
The table is altered last: until then jobs can be read while the indexes are made.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UP = """
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE INDEX jobs_status_idx ON jobs (project_id, status, id);
CREATE INDEX jobs_model_idx ON jobs
    (project_id, coalesce((recipe -> 'model') ->> 'id', (recipe -> 'model') ->> 'path'), id);
CREATE INDEX jobs_name_idx ON jobs USING gin (lower(recipe ->> 'name') gin_trgm_ops);
CREATE INDEX jobs_techniques_idx ON jobs USING gin (jsonb_path_query_array(recipe, '$.chain[*].technique'));
CREATE INDEX jobs_metadata_idx ON jobs USING gin ((recipe -> 'metadata') jsonb_path_ops);
CREATE INDEX jobs_created_idx ON jobs (created_at);
CREATE INDEX jobs_finished_idx ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_line_idx ON jobs (priority DESC, queued_at, id) WHERE status = 'queued';
CREATE INDEX jobs_unpublished_idx ON jobs (id) WHERE publish_status = 'failed';
CREATE INDEX stages_finished_idx ON stages (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX attempts_finished_idx ON attempts (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX webhook_deliveries_at_idx ON webhook_deliveries (at);
CREATE TABLE tallies (
    kind TEXT NOT NULL,
    labels TEXT[] NOT NULL,
    count BIGINT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    until TIMESTAMPTZ NOT NULL,
    CONSTRAINT tallies_pkey PRIMARY KEY (kind, labels)
);
ALTER TABLE jobs
    ADD COLUMN request_id TEXT DEFAULT '' NOT NULL,
    ADD COLUMN traceparent TEXT;
"""

DOWN = """
DROP TABLE tallies;
DROP INDEX webhook_deliveries_at_idx, attempts_finished_idx, stages_finished_idx, jobs_unpublished_idx, jobs_line_idx,
    jobs_finished_idx, jobs_created_idx, jobs_metadata_idx, jobs_techniques_idx, jobs_name_idx, jobs_model_idx, jobs_status_idx;
ALTER TABLE jobs DROP COLUMN traceparent, DROP COLUMN request_id;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
