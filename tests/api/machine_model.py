"""What may become of a job, written down by hand: `test_api_machine` holds the service against it after each step.

A table has a row for each thing to do: the states in which it may be done, and what it leads to. All else is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Table = Mapping[str, Mapping[str, str]]

HELD = ("running", "pausing", "cancelling")
OVER = ("succeeded", "failed", "cancelled")
UNDER_WAY = ("pending", "uploading")

_STILL_HELD = {status: status for status in HELD}
_HANDED_BACK = {"running": "queued", "pausing": "paused", "cancelling": "cancelled"}
_TOO_LATE = {"running": "failed", "pausing": "failed", "cancelling": "cancelled"}
_CANCELLED = {"queued": "cancelled", "paused": "cancelled", "cancelled": "cancelled"}
_CANCELLING = {"running": "cancelling", "pausing": "cancelling", "cancelling": "cancelling"}

OWNER: Table = {
    "cancel": _CANCELLED | _CANCELLING,
    "pause": {"queued": "paused", "running": "pausing", "pausing": "pausing", "paused": "paused"},
    "resume": {"paused": "queued", "queued": "queued", "running": "running"},
    "retry": {"failed": "queued", "cancelled": "queued"},
    "publish": {"succeeded": "being published"},
    "delete": dict.fromkeys(OVER, "gone"),
}
"""Nobody publishes to nowhere, or twice, and nothing that is being published is deleted."""
WORKER: Table = {
    "renew": _STILL_HELD,
    "log": _STILL_HELD,
    "begin_stage": _STILL_HELD,
    "end_stage": _STILL_HELD,
    "finish": dict.fromkeys(HELD, "succeeded"),
    "fail": dict.fromkeys(HELD, "failed"),
    "lose": _HANDED_BACK,
    "release": _HANDED_BACK,
    "paused": _HANDED_BACK,
    "cancelled": {"cancelling": "cancelled"},
    "out_of_time": _TOO_LATE,
}
"""Of the claim that holds the job. A loss that would queue it for the third time ends it."""
DEADLINE: Mapping[str, str] = {"queued": "failed"} | _TOO_LATE

PUBLISHER: Table = {
    "renew_push": {"uploading": "uploading"},
    "note": {"uploading": "uploading"},
    "succeed": {"uploading": "published", "pending": "published"},
    "refuse": {"uploading": "failed", "pending": "failed"},
    "put_off": {"uploading": "pending"},
}
"""Of the newest push; while `pending`, where it had fallen silent and nobody took over. The fifth try is the last."""

_TIME = ("time passes", "reconciler looks")
TURNS: Mapping[str, tuple[str, ...]] = {
    "queued": ("worker claims", "owner asks", *_TIME, *_TIME),
    "running": ("worker says", "worker says", "owner asks", "owner asks", *_TIME),
    "pausing": ("worker says", "worker says", "worker says", "owner asks", *_TIME),
    "cancelling": ("worker says", "worker says", "owner asks", *_TIME),
    "pending": ("publisher claims", "publisher says", "publisher says"),
    "uploading": ("publisher claims", "publisher says", *_TIME),
}
"""Who may lead on from a state of the job or of its publishing. Elsewhere it is the owner's turn."""
DEEDS = sorted({deed for deeds in TURNS.values() for deed in deeds})

STAGE_seconds = 9
LEASE_seconds, PUBLISH_LEASE_seconds = 60, 600
LIMIT_seconds, GRACE_seconds = 3700, 120
JUMPS_seconds = (130, 1300, 3760, 13000)
SLACK_seconds = 40
"""What an example really takes is less, and no sum of jumps is so close below a lease or a limit."""


@dataclass
class Expected:
    """A job as it should be. What is done to it answers whether it may be."""

    place: bool
    """Whether it is known where to publish."""
    status: str = "queued"
    run_number: int = 1
    losses: int = 0
    claims: int = 0
    holder: int | None = None
    """Epoch of the claim that may write."""
    result: tuple[int, str] | None = None
    """Epoch and digest of the claim that finished it."""
    finished_stages: set[str] = field(default_factory=set)
    waited_seconds: int = 0
    ran_seconds: int = 0
    silent_seconds: int = 0

    publish: str = "not_requested"
    pushes: int = 0
    tries: int = 0
    pusher: int | None = None
    """Epoch of the push that may write."""
    push_silent_seconds: int = 0

    @property
    def turn(self) -> tuple[str, ...]:
        """Those who may lead on from here."""
        return TURNS.get(self.publish) or TURNS.get(self.status) or ("owner asks",)

    def owner_asks(self, verb: str, place: bool) -> bool:
        """`place` says where to publish."""
        after = OWNER[verb].get(self.status)
        if after is None or (verb == "delete" and self.publish in UNDER_WAY):
            return False
        if verb == "publish":
            return self._owner_publishes(place)
        if verb == "retry":
            self.run_number, self.losses, self.ran_seconds = self.run_number + 1, 0, 0
        self._become(after)
        return True

    def worker_claims(self) -> bool:
        """It is given to one that waits for nothing else."""
        if self.status != "queued":
            return False
        self._become("running")
        self.claims, self.silent_seconds = self.claims + 1, 0
        self.holder = self.claims
        return True

    def worker_says(self, word: str, epoch: int, what: str) -> bool:
        """`what` is a stage or a digest. The same end may be said again."""
        after = WORKER[word].get(self.status)
        if after is None or epoch != self.holder:
            return word == "finish" and self.result == (epoch, what)
        if word == "renew":
            self.silent_seconds = 0
        if word == "end_stage":
            self.finished_stages.add(what)
        if word == "finish":
            self.result = epoch, what
            if self.place:
                self._await_push()
        if word == "lose":
            self._lose()
        else:
            self._become(after)
        return True

    def publisher_claims(self) -> bool:
        """A push is given to one worker, and to another when that one falls silent."""
        if self.publish != "pending" and not self._push_is_lost:
            return False
        self.publish, self.push_silent_seconds = "uploading", 0
        self.pushes, self.tries = self.pushes + 1, self.tries + 1
        self.pusher = self.pushes
        return True

    def publisher_says(self, word: str, epoch: int) -> bool:
        """Whoever said how a push ended has no more to say of it."""
        after = PUBLISHER[word].get(self.publish)
        if after is None or epoch != self.pusher:
            return False
        if word == "renew_push":
            self.push_silent_seconds = 0
        if after != "uploading":
            self.publish = "failed" if after == "pending" and self.tries >= 5 else after
            self.pusher = None
        return True

    def time_passes(self, seconds: int) -> None:
        """And nobody says a word."""
        self.waited_seconds += seconds * (self.status == "queued")
        self.ran_seconds += seconds * (self.status in HELD)
        self.silent_seconds += seconds
        self.push_silent_seconds += seconds

    def reconciler_looks(self) -> tuple[bool, bool]:
        """Whether it finds the job late, and then its worker lost."""
        if self._push_is_lost:
            self.publish = "failed" if self.tries >= 5 else "pending"
        if late := self._is_late:
            self._become(DEADLINE[self.status])
        if lost := self.status in HELD and self.silent_seconds > LEASE_seconds:
            self._lose()
        return late, lost

    @property
    def is_out_of_time(self) -> bool:
        """What its worker is told."""
        return self.ran_seconds > LIMIT_seconds

    @property
    def _is_late(self) -> bool:
        ran_too_long = self.status in HELD and self.ran_seconds > LIMIT_seconds + GRACE_seconds
        return ran_too_long or self.waited_seconds > LIMIT_seconds

    @property
    def _push_is_lost(self) -> bool:
        return self.publish == "uploading" and self.push_silent_seconds > PUBLISH_LEASE_seconds

    def _become(self, status: str) -> None:
        if status != self.status:
            self.status, self.waited_seconds = status, 0
        if status not in HELD:
            self.holder = None

    def _lose(self) -> None:
        after = _HANDED_BACK[self.status]
        if after == "queued" and self.losses == 2:
            return self._become("failed")
        self.losses += after == "queued"
        self._become(after)

    def _owner_publishes(self, place: bool) -> bool:
        self.place = self.place or place
        if not self.place or self.publish == "published":
            return False
        if self.publish not in UNDER_WAY:
            self._await_push()
        return True

    def _await_push(self) -> None:
        self.publish, self.tries, self.pusher = "pending", 0, None
