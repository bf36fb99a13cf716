"""The Celery application of a worker: one task, `stillhouse.run_job(job_id)`.

The message is a doorbell. It is gone once it is taken, and has no result: what is to be done, and whose turn
it is, stands in Postgres behind the worker API. So a lost or doubled message does no harm.
"""

import logging
import os
import socket
import sys
import threading
from dataclasses import replace
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.signals import celeryd_init, worker_ready, worker_shutting_down

from workers.runtime.folder import JOB_ID, remove_old_folders
from workers.runtime.job import run_job
from workers.runtime.presence import Presence, own_token
from workers.runtime.settings import read_settings
from workers.wire.api import Refused, Unreachable
from workers.wire.environment import SettingsError

log = logging.getLogger(__name__)

try:
    settings = read_settings(os.environ)
    settings = replace(settings, token=own_token(settings))
except (SettingsError, Refused, Unreachable) as error:
    sys.exit(f"The worker cannot start: {error}")

stopping = threading.Event()
"""Set when the worker is asked to stop, so that a running job can be handed back."""


class Doorbells(AMQP):
    """Takes doorbells without acknowledging them: nothing is lost with one, the platform rings again.

    An acknowledgement that fails leaves kombu with a message in hand, and as there is room for one only, the
    worker would never ask its broker for another.
    """

    def TaskConsumer(self, channel: Any, queues: Any = None, accept: Any = None, **more: Any) -> Any:
        return super().TaskConsumer(channel, queues, accept, no_ack=True, **more)


# No fixups: where DJANGO_SETTINGS_MODULE is set, Celery would otherwise load Django into the worker.
app = Celery("stillhouse-worker", broker=settings.broker_url, amqp=Doorbells, fixups=[])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=False,
    task_default_queue="cpu",
    task_serializer="json",
    accept_content=["json"],
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=False,
    worker_hijack_root_logger=True,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "socket_keepalive": True,
        "socket_keepalive_options": {
            socket.TCP_KEEPIDLE: 30,
            socket.TCP_KEEPINTVL: 10,
            socket.TCP_KEEPCNT: 3,
        },
        "socket_connect_timeout": 5,
        "socket_timeout": 10,
        "health_check_interval": 30,
    },
)


@app.task(name="stillhouse.run_job", ignore_result=True)
def run(job_id: str) -> None:
    """Run one job by its id; returns when the platform has its outcome, or when it is not ours to run."""
    if not JOB_ID.fullmatch(str(job_id)):
        log.warning("a message without a usable job id was dropped")
        return
    run_job(job_id, settings, stopping)


@celeryd_init.connect
def clean_up(**_: object) -> None:
    """Remove the folders of jobs that nobody will come back for."""
    for job in remove_old_folders(settings.work_dir):
        log.info("removed the old folder of job %s", job)


@worker_ready.connect
def say_hello(sender: Any = None, **_: object) -> None:
    """From now on the platform knows that this worker lives, and this worker whether it gets work.

    One that gets none (drained, refused, its disk broken) leaves the doorbells of its queues to the others.
    The consumer is not for other threads, so its own loop is asked. One that is deaf gets a new connection as
    Celery makes one: after an error of the old one.
    """
    queues = list(app.amqp.queues.consume_from)

    def rest(resting: bool) -> None:
        change = sender.cancel_task_queue if resting else sender.add_task_queue
        for queue in queues:
            sender.hub.call_soon(change, queue)

    def begin_anew() -> None:
        raise ConnectionResetError("doorbells lie at the broker, and none arrives")

    Presence(
        settings, settings.token, ",".join(queues), rest, on_deaf=lambda: sender.hub.call_soon(begin_anew)
    ).start()


@worker_shutting_down.connect
def hand_back(**_: object) -> None:
    stopping.set()
