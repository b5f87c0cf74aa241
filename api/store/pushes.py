"""Rows of jobs as pushes to a repository: whose turn it is. One at a time, so that no two race on a branch."""

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session

from api.store.clock import in_seconds
from api.store.models import Job, OutboxMessage

_repo_id = func.lower(Job.publish_to["repo_id"].astext)


def may_begin(session: Session, job_id: str) -> bool:
    """Whether none of the project's other jobs is being pushed to the same repository; nor can be until the commit.

    Only the project's own: whoever names your repository in a job of theirs must not be able to hold yours up.
    """
    repository = select(Job.project_id, _repo_id).where(Job.id == job_id)
    found = session.execute(repository).one_or_none()
    if found is None:
        return False
    name = f"publish/{found[0]}/{found[1]}"
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
    held = exists().where(
        _is_to(*found), Job.id != job_id, Job.publish_status == "uploading", Job.publish_wake_at >= in_seconds(0)
    )
    return not session.scalar(select(held))


def next_in_turn(session: Session, job: Job) -> str | None:
    """The pending push to a job's repository that has waited longest, leaving out those that wait for a time."""
    if job.publish_to is None:
        return None
    announced = exists().where(
        OutboxMessage.topic == "publish",
        OutboxMessage.published_at.is_(None),
        OutboxMessage.payload["job_id"].astext == Job.id,
    )
    statement = select(Job.id).where(
        _is_to(job.project_id, job.publish_to["repo_id"].lower()),
        Job.id != job.id,
        Job.publish_status == "pending",
        ~announced,
    )
    return session.scalar(statement.order_by(Job.publish_wake_at).limit(1))


def _is_to(project_id: str, repository: str) -> ColumnElement[bool]:
    return (Job.project_id == project_id) & (_repo_id == repository)
