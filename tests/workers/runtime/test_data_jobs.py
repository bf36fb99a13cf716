"""Jobs over datasets from claim to finish, with real child processes."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workers.standin import PlatformStandIn
from tests.workers.training.tiny import make_base
from workers.contract import (
    CompareResult,
    CompareSpec,
    DeriveResult,
    DeriveSpec,
    OtherRows,
    PreviewResult,
    PreviewSpec,
    SplitSpec,
    ThinkContract,
    ValidateSpec,
)
from workers.data.validation import validate
from workers.runtime.job import run_job
from workers.runtime.settings import WorkerSettings


def chat(question: str, **extra: object) -> bytes:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]
    return json.dumps({"messages": turns, **extra}).encode() + b"\n"


@pytest.fixture
def settings(platform: PlatformStandIn, tmp_path: Path) -> WorkerSettings:
    (tmp_path / "bases").mkdir()
    return WorkerSettings(
        platform.url, "worker-secret", "redis://", tmp_path / "bases", tmp_path / "work", "gpu-1"
    )


@pytest.fixture
def rows(tmp_path: Path) -> bytes:
    """Two good rows, normalised."""
    file, rows_file = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    file.write_bytes(chat("a", customer="A") + chat("b@example.com", customer="B"))
    validate(file, ValidateSpec(), rows_file=rows_file)
    return rows_file.read_bytes()


def result_of(platform: PlatformStandIn, settings: WorkerSettings) -> dict[str, Any]:
    run_job("job-1", settings, threading.Event())
    (finish,) = platform.finishes
    assert finish["failure"] is None, finish["failure"]
    result: dict[str, Any] = finish["result"]
    return result


def derivation(**changes: object) -> DeriveSpec:
    source = {"name": "v1", "sha256": "0" * 64}
    operations = [{"op": "mask", "kinds": ["email"]}, {"op": "append", "source": 1}]
    return DeriveSpec.model_validate({"sources": [source, source], "operations": operations, **changes})


def test_a_derivation_stores_the_new_rows(
    platform: PlatformStandIn, settings: WorkerSettings, rows: bytes
) -> None:
    platform.claimed("derive", derivation(), {"source-0": rows, "source-1": chat("c")})
    result = DeriveResult.model_validate(result_of(platform, settings))
    assert result.report is not None and result.report.valid == 3
    stored = platform.stored["rows.parquet"]
    (listed,) = platform.finishes[0]["files"]
    assert listed["sha256"] == hashlib.sha256(stored).hexdigest()
    table = pq.read_table(pa.BufferReader(stored))
    assert table.column("origin").to_pylist() == [0, 0, 1]
    assert [row[0]["content"] for row in table.column("messages").to_pylist()] == ["a", "[EMAIL]", "c"]
    assert not (settings.work_dir / "jobs" / "job-1").exists()


def test_a_source_that_cannot_be_read_is_the_users_fault(
    platform: PlatformStandIn, settings: WorkerSettings
) -> None:
    platform.claimed("derive", derivation(), {"source-0": b"PAR1 and nothing", "source-1": chat("c")})
    run_job("job-1", settings, threading.Event())
    failure = platform.finishes[0]["failure"]
    assert (failure["fault"], failure["code"]) == ("user", "damaged_parquet")


def test_a_check_compares_with_other_rows_and_splits(
    platform: PlatformStandIn, settings: WorkerSettings, rows: bytes
) -> None:
    others = [OtherRows(name="suite", sha256="0" * 64)]
    spec = ValidateSpec(others=others, split=SplitSpec(share=0.5, group="customer"))
    platform.claimed("validate", spec, {"data": chat("a", customer="C") * 3, "other-0": rows})
    doctor = result_of(platform, settings)["doctor"]
    assert [(each["name"], each["exact"]) for each in doctor["overlap"]] == [("suite", 3), ("", 0)]
    assert doctor["split"]["groups"] == 1


def test_two_versions_are_compared(platform: PlatformStandIn, settings: WorkerSettings, rows: bytes) -> None:
    platform.claimed("compare", CompareSpec(), {"before": rows, "after": rows})
    result = CompareResult.model_validate(result_of(platform, settings))
    assert (result.same, result.changed, result.added, result.removed) == (2, 0, 0, 0)


def test_rows_are_shown_as_a_base_sees_them(
    platform: PlatformStandIn, settings: WorkerSettings, rows: bytes
) -> None:
    make_base(settings.bases_dir / "tiny")
    spec = PreviewSpec(base="tiny", think=ThinkContract(family="plain"), think_policy="traces")
    platform.claimed("preview", spec, {"data": rows})
    result = PreviewResult.model_validate(result_of(platform, settings))
    assert [row.row for row in result.rows] == [1, 2]
    assert result.complete and result.counts is not None and result.counts.rows == 2
