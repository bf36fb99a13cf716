"""The web process: apps' requests go to the gateway, everything else to Django."""

import os

from django.core.asgi import get_asgi_application

from stillhouse.gateway.app import Gateway
from stillhouse.gateway.connection import Receive, Scope, Send

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "stillhouse.settings")
django = get_asgi_application()
gateway = Gateway.from_settings()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI. The gateway starts and stops with the process."""
    if scope["type"] == "lifespan":
        await gateway.lifespan(receive, send)
    elif scope["type"] == "http" and gateway.serves(scope["path"]):
        await gateway(scope, receive, send)
    else:
        await django(scope, receive, send)  # type: ignore[arg-type]  # asgiref types its scopes by kind, we by name
