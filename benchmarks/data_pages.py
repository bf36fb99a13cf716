"""The report page of a large, dirty dataset version, as a browser gets it. One JSON line.

    python benchmarks/data_pages.py [--rows 1000000]

A file of that many rows, one in a hundred in error in one of five ways and one in fifty a repeat, is checked
in the limited child; its report goes into a real Postgres, and a web process of its own answers: the whole
page, and the list filtered to one class of errors. Milliseconds at the client, in turns.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from benchmarks.jobs import members, spread, start  # noqa: E402
from benchmarks.report import Line  # noqa: E402
from workers.contract import ValidateSpec, ValidationReport  # noqa: E402
from workers.data.limited import validate_in_child  # noqa: E402

TIMES = 40
BROKEN = (
    '{"messages": [',
    '{"messages": []}',
    '{"prompt": "q", "completion": ""}',
    '{"prompt": "q", "completion": NaN}',
    '{"prompt": 1, "completion": "a"}',
)


def write_dirty(file: Path, rows: int) -> None:
    """Short rows, so that the file is quick to make: the page depends on what was found, not on bytes."""
    with file.open("w", encoding="utf-8") as out:
        for number in range(rows):
            if number % 100 == 1:
                out.write(BROKEN[number // 100 % len(BROKEN)] + "\n")
                continue
            said = number - 1 if number % 50 == 2 else number
            row = {"prompt": f"Question {said}?", "completion": f"Answer to it: {said * 7919}", "id": number}
            out.write(json.dumps(row) + "\n")


def times_of(url: str, report: ValidationReport) -> dict[str, dict[str, float]]:
    """The version's page and its errors of one class, for a member of its workspace."""
    from django.conf import settings  # noqa: PLC0415
    from django.test import Client  # noqa: PLC0415

    from stillhouse.datasets.actions import record_report  # noqa: PLC0415
    from tests.registry import data_version  # noqa: PLC0415

    (expert,) = members(1)
    version = data_version(expert, checked=False)
    record_report(version=version, report=report)
    browser = Client()
    browser.force_login(expert.user, backend=settings.AUTHENTICATION_BACKENDS[0])
    cookies = {name: morsel.value for name, morsel in browser.cookies.items()}
    page = f"/w/{expert.workspace.slug}/datasets/{version.dataset_id}/versions/{version.number}/"
    paths = {"report": page, "one_class": f"{page}problems/?kind=errors&code=bad_number"}
    times: dict[str, list[float]] = {name: [] for name in paths}
    with httpx.Client(base_url=url, cookies=cookies, timeout=30) as client:
        for _ in range(TIMES):
            for name, path in paths.items():
                began = time.monotonic()
                client.get(path).raise_for_status()
                times[name].append((time.monotonic() - began) * 1000)
    return {name: spread(found) for name, found in times.items()}


def measure(stack: ExitStack, rows: int) -> dict[str, Any]:
    from tests.stores import Stores  # noqa: PLC0415

    stores = Stores()
    home = stores.home
    os.environ.update(home.settings(), DJANGO_SETTINGS_MODULE="stillhouse.settings", LOG_LEVEL="WARNING")
    import django  # noqa: PLC0415

    django.setup()
    file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "dirty.jsonl"
    write_dirty(file, rows)
    report = validate_in_child(file, ValidateSpec())
    stack.callback(stores.stop)
    stores.start()
    from django.core.management import call_command  # noqa: PLC0415

    from stillhouse.core import blobs  # noqa: PLC0415
    from stillhouse.embedded import platform as programs  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    blobs.ensure_bucket()
    web = programs.web(home)
    start(stack, "web", list(web.argv), dict(web.environment), home.logs)
    time.sleep(8)
    return {
        "rows": report.rows,
        "errors": report.error_count,
        "warnings": report.warning_count,
        "listed": len(report.errors) + len(report.warnings),
        **times_of(home.url, report),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    line = Line("data_pages")
    with ExitStack() as stack:
        figures = measure(stack, rows)
    line.end(figures)


if __name__ == "__main__":
    main()
