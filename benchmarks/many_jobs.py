"""A hundred thousand jobs with their stages, written past the service: what its lists are measured on."""

import json
import time
from typing import Any

import psycopg

from benchmarks.running import RECIPE
from optcore.recipe import recipe_from

JOBS = 100_000
SECONDS_apart = 60
PTQ = {"technique": "ptq", "scheme": "nvfp4"}
CHAINS: list[list[dict[str, Any]]] = [
    [PTQ],
    [{"technique": "ptq", "scheme": "fp8"}],
    [{"technique": "prune", "width": 0.25}, {"technique": "distill", "steps": 100}, PTQ],
    [{"technique": "finetune", "steps": 100}, PTQ],
    [{"technique": "draft"}],
]
"""The last is one job's in a thousand, the others share the rest."""

_JOBS = """
INSERT INTO jobs (id, project_id, recipe, digest, status, epoch, attempt, worker_id, lease_until,
                  created_at, started_at, finished_at, wake_at, last_seq)
SELECT id, %(project)s,
    %(template)s::jsonb || jsonb_build_object(
        'name', 'nightly ' || (ARRAY['qwen3-8b', 'llama-70b', 'gemma-27b'])[1 + n %% 3] || ' ' || n,
        'model', %(template)s::jsonb -> 'model' || jsonb_build_object('id', 'org/model-' || n %% 500),
        'chain', CASE WHEN n %% 1000 = 7 THEN %(chains)s::jsonb -> 4 ELSE %(chains)s::jsonb -> (n %% 4) END,
        'metadata', jsonb_build_object('team', 'team-' || n %% 40, 'run', 'r' || n)),
    md5(id), status, 1, 1,
    CASE WHEN status = 'running' THEN 'worker' END, CASE WHEN status = 'running' THEN now() + interval '1 day' END,
    born, CASE WHEN status <> 'queued' THEN born + interval '9 seconds' END,
    CASE WHEN status NOT IN ('queued', 'running') THEN born + interval '900 seconds' END,
    now() + interval '1 day', 12
FROM (
    SELECT id, n, to_timestamp(%(first)s + n * %(apart)s) AS born,
        CASE WHEN n >= %(jobs)s - %(queued)s THEN 'queued' WHEN n >= %(jobs)s - %(queued)s - 20 THEN 'running'
            WHEN n %% 100 < 6 THEN 'failed' WHEN n %% 100 < 9 THEN 'cancelled' ELSE 'succeeded' END AS status
    FROM born
) AS wanted
"""
_STAGES = """
INSERT INTO stages (job_id, name, position, status, key, started_at, finished_at, seconds, peak_memory_bytes)
SELECT id, position || '-' || name, position, 'succeeded', md5(id || name), now(), now(), 60 * random(), 1e9
FROM born, unnest(ARRAY['fetch', 'ptq', 'export', 'evaluate']) WITH ORDINALITY AS each(name, position)
"""


def fill(database: psycopg.Connection[Any], project_id: str, *, jobs: int = JOBS, queued: int = 2000) -> list[str]:
    """Insert them, `queued` of them waiting: their ids, oldest first."""
    first = time.time() - jobs * SECONDS_apart
    ids = [_id(first + number * SECONDS_apart, number) for number in range(jobs)]
    template = json.dumps(recipe_from(RECIPE).model_dump(mode="json"))
    values = {"project": project_id, "template": template, "chains": _chains(), "jobs": jobs, "queued": queued}
    database.execute("CREATE TEMPORARY TABLE born (n integer, id text)")
    with database.cursor().copy("COPY born FROM STDIN") as copy:
        for row in enumerate(ids):
            copy.write_row(row)
    database.execute(_JOBS, values | {"first": first, "apart": SECONDS_apart})
    database.execute(_STAGES)
    database.execute("VACUUM ANALYZE")
    return ids


def _chains() -> str:
    """Complete, as they are stored."""
    recipes = [recipe_from(RECIPE | {"chain": chain}) for chain in CHAINS]
    return json.dumps([recipe.model_dump(mode="json")["chain"] for recipe in recipes])


def _id(at: float, number: int) -> str:
    """As `api.ids` makes them, of a time in the past."""
    value = (int(1000 * at) << 80) | number
    return "job_" + "".join(
        "0123456789abcdefghijklmnopqrstuv"[(value >> 5 * digit) & 31] for digit in range(25, -1, -1)
    )
