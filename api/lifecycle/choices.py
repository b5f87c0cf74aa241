"""What its owner can do to a job in the state that it is in: each verb that would change something, and no other."""

from typing import Literal

from lathe.models import TERMINAL, Job

Verb = Literal["pause", "resume", "cancel", "retry", "publish", "delete"]


def choices(job: Job) -> frozenset[Verb]:
    """The verbs that would neither be refused nor leave everything as it is."""
    publishing = job.publish.status in {"pending", "uploading"}
    offered: dict[Verb, bool] = {
        "pause": job.status in {"queued", "running"},
        "resume": job.status == "paused",
        "cancel": job.status not in TERMINAL and job.status != "cancelling",
        "retry": job.status in {"failed", "cancelled"},
        "publish": job.status == "succeeded" and job.publish.status == "failed",
        "delete": job.status in TERMINAL and not publishing,
    }
    return frozenset(verb for verb, is_offered in offered.items() if is_offered)
