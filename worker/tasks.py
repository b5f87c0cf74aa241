"""The tasks: what the broker can wake a worker for. Each does nothing when the database has nothing to do."""

from worker.app import app
from worker.context import context
from worker.drain import is_on as draining
from worker.publisher import publish as push
from worker.runner import run_job as run
from worker.webhooks import deliver


def run_job(job_id: str) -> None:
    """Run one attempt of a job. While the worker drains it is left: the reconciler announces it again."""
    if not draining():
        run(job_id, context())


def publish(job_id: str) -> None:
    """Push a finished job's artifact to the Hub."""
    push(job_id, context())


def deliver_webhook(message_id: str) -> None:
    """Send one webhook."""
    deliver(message_id, context())


app.task(name="run_job")(run_job)
app.task(name="publish")(publish)
app.task(name="deliver_webhook", soft_time_limit=120, time_limit=150)(deliver_webhook)
