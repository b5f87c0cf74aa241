"""The life of a job: the only place where a status changes.

    submit -> claim -> renew, record -> finish | fail | cancelled | release
    its owner's verbs: request_cancel, request_pause, resume, retry, delete, request_publish
    the reconciler's: expire_leases, enforce_deadlines, republish_stuck
    after it, a life of its own: publishing

Every function but `submit_alone` takes a session and does not commit. A change of status is one conditional UPDATE
(`transitions.move`) that takes the job's next event number and writes that event, so history has no gaps and no change
is silent. Every write of a worker is fenced by the epoch of its claim.
"""

from api.lifecycle.announcements import announce_test
from api.lifecycle.choices import Verb, choices
from api.lifecycle.claims import Claim, Renewal, claim, claim_next, renew
from api.lifecycle.outcome import cancelled, fail, finish, out_of_time, paused, release
from api.lifecycle.progress import record, record_log
from api.lifecycle.publishing import (
    PublishClaim,
    claim_publish,
    note_pull_requests,
    publish_failed,
    publish_succeeded,
    renew_publish,
    request_publish,
)
from api.lifecycle.recovery import enforce_deadlines, expire_leases, republish_stuck
from api.lifecycle.submission import (
    Origin,
    Submitted,
    delete,
    request_cancel,
    request_pause,
    resume,
    retry,
    submit,
    submit_alone,
)
from api.lifecycle.waiting import reasons as waiting_reasons
from api.store.artifacts import ArtifactFile

__all__ = [
    "ArtifactFile",
    "Claim",
    "Origin",
    "PublishClaim",
    "Renewal",
    "Submitted",
    "Verb",
    "announce_test",
    "cancelled",
    "choices",
    "claim",
    "claim_next",
    "claim_publish",
    "delete",
    "enforce_deadlines",
    "expire_leases",
    "fail",
    "finish",
    "note_pull_requests",
    "out_of_time",
    "paused",
    "publish_failed",
    "publish_succeeded",
    "record",
    "record_log",
    "release",
    "renew",
    "renew_publish",
    "republish_stuck",
    "request_cancel",
    "request_pause",
    "request_publish",
    "resume",
    "retry",
    "submit",
    "submit_alone",
    "waiting_reasons",
]
