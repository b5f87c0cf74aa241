"""A job as one tab of its page shows it, read in one go."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api import lifecycle, reports, wire
from api.auth import Caller
from api.dashboard.feed import Line, lines
from api.dashboard.pages import render
from api.dashboard.tabs import TABS, Subject, Tab
from api.errors import StoreAway
from api.estimates.prices import cost_of_job
from api.files import ArtifactStore
from api.lifecycle import Verb
from api.settings import Settings
from api.store import artifacts, clock, events, jobs, stages
from api.store.session import Sessions
from lathe.models import Artifact, Job
from optcore.report import Report

MAX_FILES = 1000
FEED_EVENTS = 500
"""History that a page starts with; the API has all of it."""
UNSETTLED = ("pending", "uploading")


@dataclass(frozen=True)
class Snapshot:
    """One state of a job, and its history up to there."""

    tab: Tab
    job: Job
    seq: int
    """Number of the last event in it."""
    lines: list[Line]
    files: tuple[Artifact, ...]
    choices: frozenset[Verb]
    """What the viewer may do to it now."""
    values: dict[str, Any]
    """What the tab shows."""
    now: datetime

    @property
    def settled(self) -> bool:
        """Nothing will change any more, unless its owner asks for something."""
        return self.job.is_terminal and self.job.publish.status not in UNSETTLED

    def state(self) -> str:
        """The part of the page that changes, without the feed."""
        shown = {"job": self.job, "files": self.files, "choices": self.choices, "now": self.now}
        return render("job_state.html", tab=self.tab, tabs=TABS, **shown, **self.values)

    def message(self, state: str) -> str:
        """What a stream sends: the state, and what is new beside it."""
        news = self.lines if self.tab == "overview" else []
        return state + render("news.html", lines=news)


@dataclass(frozen=True)
class Watch:
    """One viewer's view of one job. Each look is made of short transactions of its own."""

    sessions: Sessions
    store: ArtifactStore
    settings: Settings
    viewer: Caller
    job_id: str
    tab: Tab = "overview"

    def look(self, after: int | None = None) -> Snapshot:
        """The job now, with the events above `after`, or the latest ones. Raises `NotFound`."""
        with self.sessions() as session:
            row = jobs.get(session, self.viewer.project_id, self.job_id)
            waiting = lifecycle.waiting_reasons(session, [row]).get(row.id)
            cost = cost_of_job(session, row.id, self.settings)
            job = wire.job(row, stages.of(session, [row.id]), waiting=waiting, cost=cost)
            seq = max(0, row.last_seq - FEED_EVENTS) if after is None else after
            found = [wire.event(each) for each in events.after(session, row.id, seq, FEED_EVENTS)]
            files = tuple(map(wire.artifact, artifacts.page(session, row.id, limit=MAX_FILES)))
        report = self._report(row.epoch, files) if TABS[self.tab].with_report else None
        with self.sessions() as session:
            subject = Subject(session, self.viewer, job, files, report, clock.now(session))
            values = TABS[self.tab].read(subject)
        may_change = "jobs:write" in self.viewer.scopes
        return Snapshot(
            tab=self.tab,
            job=job,
            seq=found[-1].seq if found else seq,
            lines=lines(found),
            files=files,
            choices=lifecycle.choices(job) if may_change else frozenset(),
            values=values,
            now=subject.now,
        )

    def _report(self, epoch: int, files: Sequence[Artifact]) -> Report | None:
        """The measured before and after, once it is there and when it can be read."""
        file = next((file for file in files if file.path == reports.FILE), None)
        try:
            return reports.read(self.store, self.job_id, epoch, file)
        except StoreAway:
            return None
