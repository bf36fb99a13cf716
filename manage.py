#!/usr/bin/env python
"""Stillhouse's command line: puts platform/ on the import path and runs Django."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run one management command, as `python manage.py COMMAND`."""
    sys.path.insert(0, str(Path(__file__).resolve().parent / "platform"))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "stillhouse.settings")
    from django.core.exceptions import ImproperlyConfigured  # noqa: PLC0415 - needs the path set above
    from django.core.management import execute_from_command_line  # noqa: PLC0415 - likewise

    from stillhouse.embedded.home import EmbeddedError, settings_for  # noqa: PLC0415 - likewise

    try:
        for name, value in settings_for(sys.argv[1] if len(sys.argv) > 1 else None).items():
            os.environ.setdefault(name, value)
    except EmbeddedError as error:
        sys.exit(str(error))
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
