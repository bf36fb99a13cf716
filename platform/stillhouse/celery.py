"""The platform's end of the doorbell: it sends job ids to the broker, and that is all it does with Celery."""

from typing import Any

from celery import Celery
from django.conf import settings

TASK = "stillhouse.run_job"


def make_app(broker_url: str) -> Celery:
    """An app that only sends, and gives up within seconds when the broker is away: the outbox retries."""
    app = Celery("stillhouse", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_publish_retry=False,
        broker_connection_timeout=3,
        broker_connection_retry=False,
        broker_transport_options={"socket_timeout": 3, "socket_connect_timeout": 3, "max_retries": 0},
    )
    return app


app = make_app(settings.BROKER_URL)


def ring(job_id: str, queue: str) -> None:
    """Tell the workers of a queue that a job waits; kombu.exceptions.OperationalError within seconds when the
    broker is away."""
    app.send_task(TASK, args=[job_id], queue=queue, ignore_result=True, retry=False)


def waiting(queue: str) -> int:
    """How many doorbells the broker holds for a queue; 0 for a queue it has never seen."""
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        return int(channel.queue_declare(queue, durable=True).message_count)
