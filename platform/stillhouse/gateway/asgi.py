"""The gateway alone, to scale it out: `uvicorn stillhouse.gateway.asgi:application --app-dir platform`.

It reads Django's settings file but loads none of its apps: no ORM, no templates, no pages.
"""

import gc
import logging
import os

from django.conf import settings
from django.utils.log import configure_logging

from stillhouse.gateway.app import NOTHING_HERE, Gateway
from stillhouse.gateway.connection import Call, Receive, Scope, Send

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "stillhouse.settings")
configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)
# No line of the log says which code and thread wrote it: finding that out would take a third of its time.
logging._srcfile = None
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
gateway = Gateway.from_settings()

# What is loaded by now stays: the collector need not walk through it in the middle of requests.
gc.collect()
gc.freeze()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI."""
    if scope["type"] == "lifespan":
        await gateway.lifespan(receive, send)
    elif scope["type"] != "http":
        raise NotImplementedError(f"The gateway speaks HTTP only, not {scope['type']}.")
    elif gateway.serves(scope["path"]):
        await gateway(scope, receive, send)
    else:
        await Call(scope, receive, send).send_error(NOTHING_HERE)
