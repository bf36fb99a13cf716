"""What the first visitor of a fresh process would wait for."""

from importlib import import_module
from pathlib import Path

from django.conf import settings
from django.template.engine import Engine


def preload() -> None:
    """Import every view, and compile our templates."""
    import_module(settings.ROOT_URLCONF)
    engine = Engine.get_default()
    for folder in engine.dirs:
        for file in Path(folder).rglob("*.html"):
            engine.get_template(file.relative_to(folder).as_posix())
