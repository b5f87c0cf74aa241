"""Projects with limits, scoped keys, runs that pause and are retried, metrics and logs, hosts, leases, an audit log.

What was an owner's name becomes a project of that id and name, so that sealed secrets, whose place names it, still open.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UP = """
CREATE TABLE projects (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    max_running INTEGER,
    max_unfinished INTEGER,
    max_storage_bytes BIGINT,
    max_gpu_seconds BIGINT,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT projects_pkey PRIMARY KEY (id),
    CONSTRAINT projects_name_key UNIQUE (name)
);
INSERT INTO projects (id, name)
    SELECT owner_id, owner_id FROM api_keys UNION SELECT owner_id, owner_id FROM jobs
    UNION SELECT owner_id, owner_id FROM credentials UNION SELECT owner_id, owner_id FROM webhook_endpoints
    UNION SELECT owner_id, owner_id FROM idempotency_keys;

ALTER TABLE api_keys RENAME COLUMN owner_id TO project_id;
ALTER TABLE api_keys
    ADD COLUMN name TEXT DEFAULT '' NOT NULL,
    ADD COLUMN prefix TEXT DEFAULT '' NOT NULL,
    ADD COLUMN scopes TEXT[] DEFAULT '{}' NOT NULL,
    ADD COLUMN expires_at TIMESTAMPTZ,
    ADD COLUMN last_used_at TIMESTAMPTZ,
    ADD CONSTRAINT api_keys_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects (id);
UPDATE api_keys SET scopes = '{jobs:read,jobs:write,webhooks:read,webhooks:write,credentials:read,credentials:write,'
    'keys:read,keys:write,audit:read}';
CREATE INDEX api_keys_project_id_id_idx ON api_keys (project_id, id);

ALTER TABLE credentials RENAME COLUMN owner_id TO project_id;
ALTER TABLE credentials ADD CONSTRAINT credentials_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects (id);

CREATE FUNCTION tell_of_api_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('api_keys', '');
    RETURN NULL;
END $$;
CREATE TRIGGER api_keys_changed
    AFTER UPDATE OF project_id, scopes, expires_at, revoked_at OR DELETE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION tell_of_api_keys();

ALTER TABLE idempotency_keys RENAME COLUMN owner_id TO project_id;
ALTER TABLE idempotency_keys
    ADD COLUMN job_id TEXT,
    ADD CONSTRAINT idempotency_keys_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects (id);
CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at);

ALTER TABLE jobs RENAME COLUMN owner_id TO project_id;
ALTER INDEX jobs_owner_idx RENAME TO jobs_project_idx;
ALTER TABLE jobs
    ADD COLUMN run_number INTEGER DEFAULT 1 NOT NULL,
    ADD COLUMN priority INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN device TEXT,
    ADD COLUMN gpu_kind TEXT,
    ADD COLUMN gpu_memory_bytes BIGINT,
    ADD COLUMN max_run_seconds INTEGER,
    ADD COLUMN max_queue_seconds INTEGER,
    ADD COLUMN run_seconds DOUBLE PRECISION DEFAULT 0 NOT NULL,
    ADD COLUMN queued_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    ADD COLUMN claimed_at TIMESTAMPTZ,
    ADD COLUMN not_before TIMESTAMPTZ DEFAULT now() NOT NULL,
    ADD COLUMN publish_to JSONB,
    ADD COLUMN publish_attempt INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN publish_pull_requests JSONB DEFAULT '{}'::jsonb NOT NULL,
    ADD CONSTRAINT jobs_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects (id),
    DROP CONSTRAINT jobs_status_check,
    DROP CONSTRAINT jobs_lease_check,
    ADD CONSTRAINT jobs_status_check CHECK (status IN ('queued', 'running', 'pausing', 'paused', 'cancelling', 'succeeded', 'failed', 'cancelled')),
    ADD CONSTRAINT jobs_lease_check CHECK ((status IN ('running', 'pausing', 'cancelling')) = (worker_id IS NOT NULL AND lease_until IS NOT NULL));
UPDATE jobs SET queued_at = created_at, publish_attempt = publish_epoch, claimed_at = started_at,
    publish_to = CASE WHEN jsonb_typeof(recipe -> 'publish') = 'object' THEN recipe -> 'publish' END;
CREATE INDEX jobs_unfinished_idx ON jobs (project_id, status) WHERE status NOT IN ('succeeded', 'failed', 'cancelled');

ALTER TABLE attempts
    ADD COLUMN run_number INTEGER DEFAULT 1 NOT NULL,
    ADD COLUMN host TEXT DEFAULT '' NOT NULL,
    ADD COLUMN gpus INTEGER DEFAULT 0 NOT NULL,
    DROP CONSTRAINT attempts_state_check,
    ADD CONSTRAINT attempts_state_check CHECK (state IN ('running', 'succeeded', 'failed', 'cancelled', 'lost', 'released', 'paused'));
CREATE INDEX attempts_host_finished_at_idx ON attempts (host, finished_at);

CREATE TABLE metrics (
    job_id TEXT NOT NULL,
    stage TEXT NOT NULL,
    name TEXT NOT NULL,
    step BIGINT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT metrics_pkey PRIMARY KEY (job_id, stage, name, step),
    CONSTRAINT metrics_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE TABLE log_chunks (
    job_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    at TIMESTAMPTZ DEFAULT now() NOT NULL,
    text TEXT NOT NULL,
    CONSTRAINT log_chunks_pkey PRIMARY KEY (job_id, seq),
    CONSTRAINT log_chunks_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);

ALTER TABLE webhook_endpoints RENAME COLUMN owner_id TO project_id;
ALTER INDEX webhook_endpoints_owner_id_id_idx RENAME TO webhook_endpoints_project_id_id_idx;
ALTER TABLE webhook_endpoints
    ADD COLUMN description TEXT DEFAULT '' NOT NULL,
    ADD COLUMN previous_sealed_secret TEXT,
    ADD COLUMN previous_secret_until TIMESTAMPTZ,
    ADD COLUMN dead_messages INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN held_until TIMESTAMPTZ,
    ADD COLUMN disabled_reason TEXT,
    ADD CONSTRAINT webhook_endpoints_disabled_reason_check CHECK (disabled_reason IN ('owner', 'gone', 'undelivered')),
    ADD CONSTRAINT webhook_endpoints_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects (id);
UPDATE webhook_endpoints SET disabled_reason = 'undelivered' WHERE disabled_at IS NOT NULL;
ALTER TABLE webhook_messages
    ALTER COLUMN job_id DROP NOT NULL,
    ADD COLUMN earlier_attempts INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN asked_at TIMESTAMPTZ DEFAULT now() NOT NULL;
UPDATE webhook_messages SET asked_at = created_at;
DROP INDEX webhook_messages_endpoint_id_idx;
CREATE INDEX webhook_messages_endpoint_id_created_at_idx ON webhook_messages (endpoint_id, created_at);
CREATE INDEX webhook_messages_job_id_idx ON webhook_messages (job_id);
CREATE INDEX webhook_messages_over_idx ON webhook_messages (created_at) WHERE status <> 'pending';
ALTER TABLE webhook_deliveries ADD COLUMN endpoint_id TEXT;
UPDATE webhook_deliveries SET endpoint_id = webhook_messages.endpoint_id
    FROM webhook_messages WHERE webhook_messages.id = message_id;
ALTER TABLE webhook_deliveries ALTER COLUMN endpoint_id SET NOT NULL;
CREATE INDEX webhook_deliveries_log_idx ON webhook_deliveries (endpoint_id, at, message_id, attempt);

ALTER TABLE workers
    ADD COLUMN device TEXT,
    ADD COLUMN gpus INTEGER DEFAULT 0 NOT NULL,
    ADD COLUMN gpu_kind TEXT,
    ADD COLUMN gpu_memory_bytes BIGINT,
    ADD COLUMN unfit TEXT;

CREATE TABLE hosts (
    name TEXT NOT NULL,
    quarantined_at TIMESTAMPTZ,
    trusted_at TIMESTAMPTZ,
    CONSTRAINT hosts_pkey PRIMARY KEY (name)
);

CREATE TABLE leases (
    name TEXT NOT NULL,
    holder TEXT NOT NULL,
    term BIGINT DEFAULT 1 NOT NULL,
    until TIMESTAMPTZ NOT NULL,
    CONSTRAINT leases_pkey PRIMARY KEY (name)
);

CREATE TABLE audit_log (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    project_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    request_id TEXT DEFAULT '' NOT NULL,
    address TEXT DEFAULT '' NOT NULL,
    at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT audit_log_pkey PRIMARY KEY (id),
    CONSTRAINT audit_log_project_id_fkey FOREIGN KEY (project_id) REFERENCES projects (id)
);
CREATE INDEX audit_log_project_id_id_idx ON audit_log (project_id, id);

CREATE TABLE removals (
    prefix TEXT NOT NULL,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT removals_pkey PRIMARY KEY (prefix)
);
INSERT INTO removals (prefix) SELECT job_id || '/' || epoch FROM attempts WHERE state NOT IN ('running', 'succeeded');
"""

DOWN = """
DROP TABLE removals;
DROP TABLE audit_log;
DROP TABLE leases;
DROP TABLE hosts;
ALTER TABLE workers DROP COLUMN device, DROP COLUMN gpus, DROP COLUMN gpu_kind, DROP COLUMN gpu_memory_bytes,
    DROP COLUMN unfit;
DROP INDEX webhook_deliveries_log_idx;
ALTER TABLE webhook_deliveries DROP COLUMN endpoint_id;
DROP INDEX webhook_messages_over_idx;
DROP INDEX webhook_messages_job_id_idx;
DROP INDEX webhook_messages_endpoint_id_created_at_idx;
CREATE INDEX webhook_messages_endpoint_id_idx ON webhook_messages (endpoint_id);
DELETE FROM webhook_messages WHERE job_id IS NULL;
ALTER TABLE webhook_messages
    ALTER COLUMN job_id SET NOT NULL,
    DROP COLUMN earlier_attempts,
    DROP COLUMN asked_at;
ALTER TABLE webhook_endpoints
    DROP CONSTRAINT webhook_endpoints_project_id_fkey,
    DROP COLUMN description,
    DROP COLUMN previous_sealed_secret,
    DROP COLUMN previous_secret_until,
    DROP COLUMN dead_messages,
    DROP COLUMN held_until,
    DROP CONSTRAINT webhook_endpoints_disabled_reason_check,
    DROP COLUMN disabled_reason;
ALTER INDEX webhook_endpoints_project_id_id_idx RENAME TO webhook_endpoints_owner_id_id_idx;
ALTER TABLE webhook_endpoints RENAME COLUMN project_id TO owner_id;
DROP TABLE log_chunks;
DROP TABLE metrics;
UPDATE attempts SET state = 'released' WHERE state = 'paused';
DROP INDEX attempts_host_finished_at_idx;
ALTER TABLE attempts
    DROP COLUMN run_number,
    DROP COLUMN host,
    DROP COLUMN gpus,
    DROP CONSTRAINT attempts_state_check,
    ADD CONSTRAINT attempts_state_check CHECK (state IN ('running', 'succeeded', 'failed', 'cancelled', 'lost', 'released'));
UPDATE jobs SET status = 'queued' WHERE status = 'paused';
UPDATE jobs SET status = 'running' WHERE status = 'pausing';
DROP INDEX jobs_unfinished_idx;
ALTER TABLE jobs
    DROP COLUMN run_number,
    DROP COLUMN priority,
    DROP COLUMN device,
    DROP COLUMN gpu_kind,
    DROP COLUMN gpu_memory_bytes,
    DROP COLUMN max_run_seconds,
    DROP COLUMN max_queue_seconds,
    DROP COLUMN run_seconds,
    DROP COLUMN queued_at,
    DROP COLUMN claimed_at,
    DROP COLUMN not_before,
    DROP COLUMN publish_to,
    DROP COLUMN publish_attempt,
    DROP COLUMN publish_pull_requests,
    DROP CONSTRAINT jobs_project_id_fkey,
    DROP CONSTRAINT jobs_status_check,
    DROP CONSTRAINT jobs_lease_check,
    ADD CONSTRAINT jobs_status_check CHECK (status IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')),
    ADD CONSTRAINT jobs_lease_check CHECK ((status IN ('running', 'cancelling')) = (worker_id IS NOT NULL AND lease_until IS NOT NULL));
ALTER INDEX jobs_project_idx RENAME TO jobs_owner_idx;
ALTER TABLE jobs RENAME COLUMN project_id TO owner_id;
DROP INDEX idempotency_keys_created_at_idx;
ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_project_id_fkey,
    DROP COLUMN job_id;
ALTER TABLE idempotency_keys RENAME COLUMN project_id TO owner_id;
ALTER TABLE credentials DROP CONSTRAINT credentials_project_id_fkey;
ALTER TABLE credentials RENAME COLUMN project_id TO owner_id;
DROP TRIGGER api_keys_changed ON api_keys;
DROP FUNCTION tell_of_api_keys;
DROP INDEX api_keys_project_id_id_idx;
ALTER TABLE api_keys
    DROP CONSTRAINT api_keys_project_id_fkey,
    DROP COLUMN name,
    DROP COLUMN prefix,
    DROP COLUMN scopes,
    DROP COLUMN expires_at,
    DROP COLUMN last_used_at;
ALTER TABLE api_keys RENAME COLUMN project_id TO owner_id;
DROP TABLE projects;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
