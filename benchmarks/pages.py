"""Pages of a list of 100,000 jobs: the service beside the query that it stands on, in turns."""

import http.client
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlencode

import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import select
from sqlalchemy.dialects.postgresql.psycopg import dialect as psycopg_dialect

from api.store.listing import Query
from api.store.models import Job
from benchmarks.many_jobs import JOBS, fill
from benchmarks.running import Service, connected, service, signed_in

ROUNDS, WARM_UP = 25, 5
ROWS, MOST = 20, 100
TEAM, RUN = {"metadata": "team=team-7"}, {"metadata": "run=r4321"}
PAGES: dict[str, tuple[dict[str, str], Query]] = {
    "newest": ({}, Query()),
    "oldest": ({"order": "asc"}, Query(oldest_first=True)),
    "queued": ({"status": "queued"}, Query(statuses=["queued"])),
    "succeeded": ({"status": "succeeded"}, Query(statuses=["succeeded"])),
    "running": ({"status": "running"}, Query(statuses=["running"])),
    "technique, nearly every job": ({"technique": "ptq"}, Query(technique="ptq")),
    "technique, one in a thousand": ({"technique": "draft"}, Query(technique="draft")),
    "technique, none": ({"technique": "qad"}, Query(technique="qad")),
    "model": ({"model": "org/model-7"}, Query(model="org/model-7")),
    "name, a third": ({"name_contains": "QWEN3"}, Query(name_contains="QWEN3")),
    "name, one": ({"name_contains": " 4321"}, Query(name_contains=" 4321")),
    "name, none": ({"name_contains": "phi-4"}, Query(name_contains="phi-4")),
    "metadata, one in forty": (TEAM, Query(metadata={"team": "team-7"})),
    "metadata, one": (RUN, Query(metadata={"run": "r4321"})),
}
"""What is asked for, as parameters and as the query."""


class Bare(NamedTuple):
    """A query, and its parameters."""

    text: str
    values: Mapping[str, Any]


def measure_pages() -> None:
    """Print the median milliseconds of the bare query and of the page, and what the page adds."""
    with service() as ours, psycopg.connect(ours.environment["LATHE_DATABASE_URL"], autocommit=True) as database:
        project_id = _project(database)
        ids = fill(database, project_id)
        print(f"| {JOBS} jobs, pages of {ROWS} | bare query, ms | page, ms | added, ms |\n| :-- | --: | --: | --: |")
        for name, (path, query) in _asked(ids, partial(_sql, project_id)).items():
            bare, whole, added = _in_turns(ours, database, path, query)
            print(f"| {name} | {bare:.1f} | {whole:.1f} | {added:.1f} |", flush=True)


def _asked(ids: Sequence[str], sql: Callable[..., Bare]) -> dict[str, tuple[str, Bare]]:
    """Paths and bare queries."""
    found = {name: (_path(wanted), sql(query)) for name, (wanted, query) in PAGES.items()}
    for cursor in (ids[JOBS // 2], ids[100]):
        found[f"after {JOBS - ids.index(cursor):,}"] = _path({"after": cursor}), sql(Query(), after=cursor)
    succeeded = Query(statuses=["succeeded"])
    found["newest, 100 rows"] = _path({}, MOST), sql(Query(), MOST)
    found["succeeded, 100 rows"] = _path({"status": "succeeded"}, MOST), sql(succeeded, MOST)
    found["dashboard"] = "/", sql(Query())
    found["dashboard, failed"] = "/?show=failed", sql(Query(statuses=["failed"]))
    return found


def _project(database: psycopg.Connection[Any]) -> str:
    """The one that the service's key speaks for."""
    row = database.execute("SELECT id FROM projects").fetchone()
    assert row is not None
    return str(row[0])


def _path(wanted: Mapping[str, str], rows: int = ROWS) -> str:
    return "/v1/jobs?" + urlencode({**wanted, "limit": rows})


def _sql(project_id: str, query: Query, rows: int = ROWS, after: str | None = None) -> Bare:
    """The list's query."""
    statement = select(Job).where(Job.project_id == project_id, *query.conditions())
    if after is not None:
        statement = statement.where(Job.id < after)
    ordered = statement.order_by(Job.id.asc() if query.oldest_first else Job.id.desc()).limit(rows + 1)
    made = ordered.compile(dialect=psycopg_dialect(), compile_kwargs={"render_postcompile": True})
    values = {name: Jsonb(value) if isinstance(value, dict | list) else value for name, value in made.params.items()}
    return Bare(str(made), values)


def _in_turns(ours: Service, database: psycopg.Connection[Any], path: str, bare: Bare) -> tuple[float, float, float]:
    """Medians, in milliseconds; the last is that of the differences of neighbours in time."""
    client = connected(ours.port)
    headers = ours.headers if path.startswith("/v1/") else signed_in(client, ours)
    pairs = [
        (
            _timed(lambda: database.execute(bare.text.encode(), bare.values).fetchall()),
            _timed(lambda: _get(client, path, headers)),
        )
        for _ in range(ROUNDS + WARM_UP)
    ][WARM_UP:]
    differences = [whole - query for query, whole in pairs]
    bares, wholes = zip(*pairs, strict=True)
    return statistics.median(bares), statistics.median(wholes), statistics.median(differences)


def _get(client: http.client.HTTPConnection, path: str, headers: Mapping[str, str]) -> None:
    client.request("GET", path, headers=dict(headers))
    answer = client.getresponse()
    body = answer.read()
    if answer.status != http.client.OK:
        raise RuntimeError(f"GET {path}: {answer.status} {body[:300]!r}")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)
