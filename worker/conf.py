"""Celery's configuration. Every setting that a lost or doubled message depends on is written out.

A message is a hint that carries ids, acked early; the database decides what happens.
"""

from typing import Any

from celery import Celery

VISIBILITY_seconds = 3600
"""Guards only the moment between delivery and the early ack. Redis wants the same number in three places."""

ENGINE_QUEUE = "gpu"
QUEUES = {"run_job": ENGINE_QUEUE, "publish": "cpu", "deliver_webhook": "cpu"}
"""Topics of the outbox, which are the names of the tasks, and the queue of each."""


def configuration(redis_url: str) -> dict[str, Any]:
    """The settings of an application on a broker."""
    visibility = {"visibility_timeout": VISIBILITY_seconds}
    return {
        "broker_url": redis_url,
        "broker_transport_options": {
            **visibility,
            "global_keyprefix": "lathe:",
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        "result_backend_transport_options": visibility,
        **visibility,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_default_queue": "cpu",
        "task_routes": {name: {"queue": queue} for name, queue in QUEUES.items()},
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_soft_shutdown_timeout": 60,
        "worker_hijack_root_logger": False,
    }


def assert_safe(app: Celery) -> None:
    """Fail at the start when a setting would let the broker run a job twice or lose it."""
    conf = app.conf
    timeouts = {
        conf.broker_transport_options["visibility_timeout"],
        conf.result_backend_transport_options["visibility_timeout"],
        conf.visibility_timeout,
    }
    assert timeouts == {VISIBILITY_seconds}, f"visibility timeouts differ: {timeouts}"
    assert not conf.task_acks_late
    assert not conf.task_time_limit, "the supervisor owns the time of a job"
    assert conf.worker_disable_prefetch
