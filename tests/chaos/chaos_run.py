"""A run: jobs are submitted, things break in random order, invariants are looked at, and all of it has an end."""

import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from chaos_cluster import Cluster
from chaos_faults import FAULTS
from chaos_invariants import Invariants

UNFINISHED = 8
"""Jobs in hand at one time."""
END = ("succeeded", "failed", "cancelled")


@dataclass
class Run:
    """Breaks a cluster that works."""

    cluster: Cluster
    dice: random.Random
    wanted_jobs: int
    wanted_faults: int
    document: Any
    """Makes the recipe of job number n."""
    jobs: dict[str, int] = field(default_factory=dict)
    """Number of each job by its id."""
    restless: bool = True
    """Whether the owner cancels, pauses and resumes."""
    cancelled: set[str] = field(default_factory=set)
    retried: int = 0

    def __post_init__(self) -> None:
        self.invariants = Invariants(self.cluster)
        self.took: defaultdict[str, list[float]] = defaultdict(list)

    def go(self) -> None:
        """Until there were enough faults and jobs, and every job is over."""
        while self.faults < self.wanted_faults or len(self.jobs) < self.wanted_jobs:
            self._submit()
            self._be_an_owner()
            if self.faults < self.wanted_faults:
                self._break_something()
            self.invariants.check()
            self._hurry()
        self._finish()

    @property
    def faults(self) -> int:
        """So far."""
        return sum(map(len, self.took.values()))

    def _submit(self) -> None:
        while len(self.jobs) < self.wanted_jobs and self._unfinished() < UNFINISHED:
            number = len(self.jobs)
            answer = self.cluster.call("POST", "/v1/jobs", json=self.document(number))
            assert answer.status_code == 201, answer.text
            assert answer.json()["id"] not in self.jobs, "two answers, one job"
            self.jobs[answer.json()["id"]] = number

    def _be_an_owner(self) -> None:
        """Cancel, pause and resume now and then."""
        verb = self.dice.choices(("", "cancel", "pause", "resume"), (12, 1, 2, 4))[0]
        states = {"cancel": ("queued", "running"), "pause": ("queued", "running"), "resume": ("paused",)}
        if not verb or not self.restless:
            return
        rows = self.cluster.rows("SELECT id FROM jobs WHERE status = ANY(%s) ORDER BY id", list(states[verb]))
        if rows:
            job_id = self.dice.choice(rows)["id"]
            answer = self.cluster.call("POST", f"/v1/jobs/{job_id}/{verb}")
            assert answer.status_code in (200, 409), answer.text
            if verb == "cancel" and answer.status_code == 200:
                self.cancelled.add(job_id)

    def _break_something(self) -> None:
        name = self.dice.choice(list(FAULTS))
        began = time.monotonic()
        FAULTS[name](self.cluster, self.dice)
        self.took[name].append(time.monotonic() - began)
        self.cluster.revive()

    def _finish(self) -> None:
        deadline = time.monotonic() + 300
        while self._unfinished():
            assert time.monotonic() < deadline, f"{self._states()}\n{self.cluster.logs()}"
            self._hurry()
            for row in self.cluster.rows("SELECT id FROM jobs WHERE status = 'paused'"):
                self.cluster.call("POST", f"/v1/jobs/{row['id']}/resume")
            self._retry_what_the_faults_ended()
            self.cluster.revive()
            self.invariants.check()
            time.sleep(0.5)
        self.invariants.check()

    def _retry_what_the_faults_ended(self) -> None:
        """A job that lost three attempts has failed, and says so. Its owner asks for another run."""
        lost = "SELECT id FROM jobs WHERE status = 'failed' AND failure->>'kind' = 'infrastructure'"
        for row in self.cluster.rows(lost):
            if self.cluster.call("POST", f"/v1/jobs/{row['id']}/retry").status_code == 200:
                self.retried += 1

    def _unfinished(self) -> int:
        infrastructure = "status = 'failed' AND failure->>'kind' = 'infrastructure'"
        statement = f"SELECT count(*) AS n FROM jobs WHERE finished_at IS NULL OR ({infrastructure})"
        return int(self.cluster.rows(statement)[0]["n"])

    def _hurry(self) -> None:
        """Let the rests after losses pass: they are for machines that need minutes, not for this one."""
        self.cluster.rows("UPDATE jobs SET not_before = now() WHERE status = 'queued' AND not_before > now()")
        self.cluster.rows("DELETE FROM hosts")

    def _states(self) -> list[dict[str, Any]]:
        return self.cluster.rows("SELECT id, status, epoch, worker_id, lease_until FROM jobs WHERE finished_at IS NULL")

    def table(self) -> str:
        """The faults, as Markdown."""
        lines = ["| fault | times | mean seconds |", "| :-- | --: | --: |"]
        for name, seconds in sorted(self.took.items()):
            lines.append(f"| {name} | {len(seconds)} | {statistics.mean(seconds):.1f} |")
        mean = statistics.mean(second for seconds in self.took.values() for second in seconds)
        return "\n".join([*lines, f"| in all | {self.faults} | {mean:.1f} |"])
