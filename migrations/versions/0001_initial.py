"""The first schema: jobs and their history, the outbox, webhooks, credentials, keys, workers."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UP = """
CREATE TABLE api_keys (
    id TEXT NOT NULL,
    owner_id TEXT NOT NULL,
    key_sha256 TEXT NOT NULL,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    revoked_at TIMESTAMPTZ,
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_key_sha256_key UNIQUE (key_sha256)
);

CREATE TABLE credentials (
    owner_id TEXT NOT NULL,
    name TEXT NOT NULL,
    sealed_token TEXT NOT NULL,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    updated_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT credentials_pkey PRIMARY KEY (owner_id, name)
);

CREATE TABLE idempotency_keys (
    owner_id TEXT NOT NULL,
    route TEXT NOT NULL,
    key TEXT NOT NULL,
    body_sha256 TEXT NOT NULL,
    sealed_answer TEXT,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (owner_id, route, key)
);

CREATE TABLE jobs (
    id TEXT NOT NULL,
    owner_id TEXT NOT NULL,
    recipe JSONB NOT NULL,
    digest TEXT NOT NULL,
    status TEXT DEFAULT 'queued' NOT NULL,
    epoch INTEGER DEFAULT 0 NOT NULL,
    worker_id TEXT,
    lease_until TIMESTAMPTZ,
    attempt INTEGER DEFAULT 0 NOT NULL,
    losses INTEGER DEFAULT 0 NOT NULL,
    last_seq INTEGER DEFAULT 0 NOT NULL,
    wake_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    cancel_requested_at TIMESTAMPTZ,
    resolved JSONB,
    failure JSONB,
    artifact_digest TEXT,
    publish_status TEXT DEFAULT 'not_requested' NOT NULL,
    publish_epoch INTEGER DEFAULT 0 NOT NULL,
    publish_worker_id TEXT,
    publish_wake_at TIMESTAMPTZ,
    publish_url TEXT,
    publish_commit TEXT,
    publish_failure JSONB,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    started_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ,
    CONSTRAINT jobs_pkey PRIMARY KEY (id),
    CONSTRAINT jobs_status_check CHECK (status IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT jobs_publish_status_check CHECK (publish_status IN ('not_requested', 'pending', 'uploading', 'published', 'failed')),
    CONSTRAINT jobs_lease_check CHECK ((status IN ('running', 'cancelling')) = (worker_id IS NOT NULL AND lease_until IS NOT NULL)),
    CONSTRAINT jobs_final_check CHECK ((status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
);
CREATE INDEX jobs_lease_idx ON jobs (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX jobs_owner_idx ON jobs (owner_id, id);
CREATE INDEX jobs_publish_idx ON jobs (publish_wake_at) WHERE publish_status = 'pending' OR publish_status = 'uploading';
CREATE INDEX jobs_wake_idx ON jobs (wake_at) WHERE status = 'queued';

CREATE TABLE outbox (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    topic TEXT NOT NULL,
    payload JSONB NOT NULL,
    available_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    published_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT outbox_pkey PRIMARY KEY (id)
);
CREATE INDEX outbox_due_idx ON outbox (available_at, id) WHERE published_at IS NULL;
CREATE INDEX outbox_published_idx ON outbox (published_at) WHERE published_at IS NOT NULL;

CREATE TABLE webhook_endpoints (
    id TEXT NOT NULL,
    owner_id TEXT NOT NULL,
    url TEXT NOT NULL,
    events TEXT[] NOT NULL,
    sealed_secret TEXT NOT NULL,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    disabled_at TIMESTAMPTZ,
    CONSTRAINT webhook_endpoints_pkey PRIMARY KEY (id)
);
CREATE INDEX webhook_endpoints_owner_id_id_idx ON webhook_endpoints (owner_id, id);

CREATE TABLE workers (
    id TEXT NOT NULL,
    host TEXT NOT NULL,
    started_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    seen_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    draining BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT workers_pkey PRIMARY KEY (id)
);

CREATE TABLE artifacts (
    job_id TEXT NOT NULL,
    path TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    CONSTRAINT artifacts_pkey PRIMARY KEY (job_id, path),
    CONSTRAINT artifacts_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE TABLE attempts (
    job_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    worker_id TEXT NOT NULL,
    state TEXT DEFAULT 'running' NOT NULL,
    failure JSONB,
    started_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    finished_at TIMESTAMPTZ,
    CONSTRAINT attempts_pkey PRIMARY KEY (job_id, epoch),
    CONSTRAINT attempts_state_check CHECK (state IN ('running', 'succeeded', 'failed', 'cancelled', 'lost', 'released')),
    CONSTRAINT attempts_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE TABLE events (
    job_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at TIMESTAMPTZ DEFAULT now() NOT NULL,
    type TEXT NOT NULL,
    data JSONB NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (job_id, seq),
    CONSTRAINT events_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE TABLE stages (
    job_id TEXT NOT NULL,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    status TEXT DEFAULT 'pending' NOT NULL,
    phase TEXT,
    done BIGINT DEFAULT 0 NOT NULL,
    total BIGINT DEFAULT 0 NOT NULL,
    key TEXT,
    started_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ,
    seconds DOUBLE PRECISION,
    peak_memory_bytes BIGINT,
    CONSTRAINT stages_pkey PRIMARY KEY (job_id, name),
    CONSTRAINT stages_status_check CHECK (status IN ('pending', 'running', 'succeeded', 'cached', 'failed', 'cancelled')),
    CONSTRAINT stages_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);

CREATE TABLE webhook_messages (
    id TEXT NOT NULL,
    endpoint_id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    type TEXT NOT NULL,
    payload JSONB NOT NULL,
    status TEXT DEFAULT 'pending' NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    wake_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    created_at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT webhook_messages_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_messages_status_check CHECK (status IN ('pending', 'delivered', 'failed')),
    CONSTRAINT webhook_messages_endpoint_id_fkey FOREIGN KEY(endpoint_id) REFERENCES webhook_endpoints (id) ON DELETE CASCADE,
    CONSTRAINT webhook_messages_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE INDEX webhook_messages_endpoint_id_idx ON webhook_messages (endpoint_id);
CREATE INDEX webhook_messages_wake_idx ON webhook_messages (wake_at) WHERE status = 'pending';

CREATE TABLE webhook_deliveries (
    message_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    status_code INTEGER,
    error TEXT,
    seconds DOUBLE PRECISION NOT NULL,
    at TIMESTAMPTZ DEFAULT now() NOT NULL,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (message_id, attempt),
    CONSTRAINT webhook_deliveries_message_id_fkey FOREIGN KEY(message_id) REFERENCES webhook_messages (id) ON DELETE CASCADE
);
"""

DOWN = """
DROP TABLE webhook_deliveries;
DROP TABLE webhook_messages;
DROP TABLE stages;
DROP TABLE events;
DROP TABLE attempts;
DROP TABLE artifacts;
DROP TABLE workers;
DROP TABLE webhook_endpoints;
DROP TABLE outbox;
DROP TABLE jobs;
DROP TABLE idempotency_keys;
DROP TABLE credentials;
DROP TABLE api_keys;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
