"""How worker and agent reach the platform: their environment, JSON calls, and files by presigned URL."""

import logging

logging.getLogger("httpx").setLevel(logging.WARNING)  # its INFO lines hold whole URLs, signatures included
