"""The web process: apps' requests go to the gateway, waiting agents to their doorbell, the rest to Django."""

import gc
import os
from typing import cast

from django.conf import settings
from django.core.asgi import get_asgi_application

from stillhouse import openai_api
from stillhouse.gateway.app import Gateway
from stillhouse.gateway.connection import Application, Receive, Scope, Send
from stillhouse.web.preload import preload
from stillhouse.worker_api.bell import Bell

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "stillhouse.settings")
# asgiref types its scopes by kind, we by name.
django = cast(Application, get_asgi_application())
preload()
gateway = Gateway.from_settings()
bell = Bell(settings.DATABASE_URL, settings.AGENT_TOKEN)

# What is loaded by now stays: the collector need not walk through it in the middle of requests.
gc.collect()
gc.freeze()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI. The gateway starts and stops with the process."""
    if scope["type"] == "lifespan":
        await gateway.lifespan(receive, send)
        await bell.stop()
    elif scope["type"] == "http" and openai_api.serves(scope["path"]):
        await gateway.let_by(scope, receive, send, django)
    elif scope["type"] == "http" and gateway.serves(scope["path"]):
        await gateway(scope, receive, send)
    elif scope["type"] == "http" and bell.serves(scope["path"]):
        await bell(scope, receive, send)
    else:
        await django(scope, receive, send)
