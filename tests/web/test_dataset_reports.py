"""What a check found, on the page and as a file; another reading; and the rows that training gets."""

import pytest

from stillhouse.datasets.actions import record_report
from stillhouse.datasets.models import DatasetVersion
from stillhouse.datasets.reports import PAGE, Listed, checked, problems
from stillhouse.web.views.dataset_reports import escaped
from stillhouse.web.views.dataset_views import numbered, token_bars
from tests.world import World, sha256
from workers.contract import OutputFile, Problem, Reading, ValidateSpec, ValidationReport

pytestmark = pytest.mark.django_db
REPORT = ValidationReport(
    rows=2,
    valid=1,
    errors=[Problem(row=2, field="q", code="missing_field", message="Fill it in.", value="=1+1<b>")],
    warnings=[],
    error_count=1,
    warning_count=0,
    error_counts={"missing_field": 1},
    reading=Reading(format="CSV", columns=["q", "a"], preview=[{"q": "Haus?", "a": "house"}]),
    seconds=0.1,
    peak_rss_bytes=1,
)


def reported(world: World) -> DatasetVersion:
    version = world.dataset()
    record_report(version=version, report=REPORT)
    return version


def test_the_list_is_safe_in_a_page_and_in_a_spreadsheet(world: World) -> None:
    version = reported(world)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/"
    client = world.client(world.expert)
    page = client.get(url).content.decode()
    assert "We read it like this" in page and "=1+1&lt;b&gt;" in page and "<b>" not in page
    assert "'=1+1<b>" in client.get(url + "problems.csv").content.decode()
    assert (
        "Fill it in."
        in client.get(url + "problems/", {"kind": "errors", "code": "missing_field"}).content.decode()
    )
    assert (
        "Fill it in." not in client.get(url + "problems/", {"kind": "errors", "code": "x"}).content.decode()
    )
    assert [escaped(cell) for cell in ("@x", "-1", "x=1", 3)] == ["'@x", "'-1", "x=1", 3]


def test_problems_are_shown_a_page_at_a_time_and_by_class(world: World) -> None:
    version = world.dataset()
    errors = [
        Problem(row=row, field="", code="odd" if row % 2 else "even", message=f"Row {row}.")
        for row in range(1, 2 * PAGE + 1)
    ]
    counts = {"odd": 3000, "even": PAGE}
    update = {"errors": errors, "error_counts": counts, "error_count": sum(counts.values())}
    record_report(version=version, report=REPORT.model_copy(update=update))
    assert problems(version, "warnings") == Listed([], 0, 1)
    last = problems(version, "errors", page=99)
    assert (last.listed, last.page, last.problems[-1]["row"]) == (2 * PAGE, 2, 2 * PAGE)
    odd = problems(version, "errors", "odd")
    assert [each["row"] for each in odd.problems] == list(range(1, 2 * PAGE, 2))
    found = checked(version)
    assert found is not None and "errors" not in found.body and found.body["error_counts"] == counts

    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/problems/"
    client = world.client(world.expert)
    page = client.get(url, {"kind": "errors", "page": "2"}).content.decode()
    assert f"Row {PAGE + 1}." in page and f"Row {PAGE}." not in page and "2 of 2" in page
    assert "of 3,000 are listed" in client.get(url, {"code": "odd", "page": "x"}).content.decode()
    assert "Row" not in client.get(url, {"code": "') || true"}).content.decode().partition("<tbody>")[2]
    assert world.client(world.outsider).get(url).status_code == 404


def test_another_reading_is_shown_first_and_makes_a_version(world: World) -> None:
    version = reported(world)
    url = f"/w/acme/datasets/{version.dataset_id}/versions/1/reading/"
    client = world.client(world.expert)
    assert "house" in client.get(url, {"question": "q", "answer": "a"}).content.decode()
    assert client.post(url, {"question": "q"}).status_code == 400
    assert client.post(url, {"question": "q", "answer": "a"}).status_code == 302
    made = version.dataset.versions.get(number=2)
    assert made.sha256 == version.sha256
    mapping = ValidateSpec.model_validate(made.job.spec).mapping
    assert mapping is not None and (mapping.question, mapping.answer) == ("q", "a")


def test_the_normalised_rows_are_what_is_trained(world: World) -> None:
    version = world.dataset()
    worker = world.worker(version.job)
    assert worker.claim()["inputs"][0]["sha256"] == version.sha256
    (sent,) = worker.send_files({"rows.parquet": b"rows"})
    done = worker.post(
        "finish", {"result": REPORT.model_dump(mode="json"), "files": [OutputFile(**sent).model_dump()]}
    )
    assert done.status_code in (200, 204), done.content
    version.refresh_from_db()
    assert (version.trained_sha256, version.trained_size) == (sha256(b"rows"), 4)


def test_a_large_file_gets_its_digest_from_the_check(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.datasets.uploading.HASHED_AT_ONCE", 0)
    version = world.dataset()
    assert version.sha256 == ""
    worker = world.worker(version.job)
    assert worker.claim()["inputs"][0]["sha256"] is None
    result = REPORT.model_copy(update={"sha256": sha256(b"x" * 3)}).model_dump(mode="json")
    assert worker.post("finish", {"result": result}).status_code in (200, 204)
    version.refresh_from_db()
    assert version.sha256 == sha256(b"xxx")


def test_lengths_in_tokens_are_drawn_in_few_bars_that_hold_every_sample() -> None:
    bins = [{"longest": longest, "samples": longest % 7} for longest in (1, 30, 128, 129, 2048, 2050, 3001)]
    bars = token_bars({"counts": {"bins": bins}}, 2048)
    assert len(bars) <= 40 and bars[-1][0] >= 3001
    assert sum(within + beyond for _, within, beyond in bars) == sum(each["samples"] for each in bins)
    assert sum(beyond for _, _, beyond in bars) == 2050 % 7 + 3001 % 7
    assert bars[0][1] > 0
    assert token_bars(None, 2048) == token_bars({"counts": {"bins": []}}, 16) == []


def test_answers_of_a_long_chat_keep_their_numbers() -> None:
    row = numbered({"row": 1, "samples": [{"turn": turn} for turn in (1, 3, 19, 21)], "left_out": 7})
    assert [(each["number"], each["gap"]) for each in row["samples"]] == [(1, 0), (2, 0), (10, 7), (11, 0)]
    whole = numbered({"row": 1, "samples": [{"turn": 1}, {"turn": 3}]})
    assert [(each["number"], each["gap"]) for each in whole["samples"]] == [(1, 0), (2, 0)]
