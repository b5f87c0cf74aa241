"""The life of a job: the only place where a status changes.

    submit -> claim -> renew, record -> finish | fail | cancelled | release
    beside it: request_cancel; expire_leases and republish_stuck for the reconciler; then publishing, a life of its own

Every function takes a session and does not commit. A change of status is one conditional UPDATE (`transitions.move`)
that takes the job's next event number and writes that event, so history has no gaps and no change is silent.
Every write of a worker is fenced by the epoch of its claim.
"""

from api.lifecycle.claims import Claim, Renewal, claim, renew
from api.lifecycle.outcome import cancelled, fail, finish, release
from api.lifecycle.progress import record
from api.lifecycle.publishing import (
    PublishClaim,
    claim_publish,
    publish_failed,
    publish_succeeded,
    renew_publish,
)
from api.lifecycle.recovery import expire_leases, republish_stuck
from api.lifecycle.submission import request_cancel, submit
from api.store.artifacts import ArtifactFile

__all__ = [
    "ArtifactFile",
    "Claim",
    "PublishClaim",
    "Renewal",
    "cancelled",
    "claim",
    "claim_publish",
    "expire_leases",
    "fail",
    "finish",
    "publish_failed",
    "publish_succeeded",
    "record",
    "release",
    "renew",
    "renew_publish",
    "republish_stuck",
    "request_cancel",
    "submit",
]
