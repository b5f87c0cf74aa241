"""The tasks: what the broker can wake a worker for. Each does nothing when the database has nothing to do."""

from worker.app import app
from worker.context import context
from worker.drain import is_on as draining
from worker.publisher import publish as push
from worker.runner import run_next
from worker.webhooks import deliver


def run_job(job_id: str) -> None:
    """Somebody said that a job waits: run those that are first in line, until none is left for us or we drain."""
    while not draining() and run_next(context()):
        pass


def publish(job_id: str) -> None:
    """Push a finished job's artifact to the Hub."""
    push(job_id, context())


def deliver_webhook(message_id: str) -> None:
    """Send one webhook."""
    deliver(message_id, context())


app.task(name="run_job")(run_job)
app.task(name="publish")(publish)
app.task(name="deliver_webhook", soft_time_limit=120, time_limit=150)(deliver_webhook)
