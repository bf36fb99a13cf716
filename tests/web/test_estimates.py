"""What a run would take: from guess to count to correction, on the form and at the start of a run."""

from typing import Any

import pytest
from django.utils import timezone

from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import UserError
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.models import Job, Kind, Worker
from stillhouse.training.actions import start_run
from stillhouse.training.estimates import RunEstimate, estimate_run
from stillhouse.training.fleet import machines, machines_of
from stillhouse.training.measuring import record_counts, record_measure, request_count
from stillhouse.training.models import RunMeasure, TokenCount
from stillhouse.training.presets import resolve_spec
from tests.registry import DEMO_BASE, available_base, data_version, manifest_of, started_run
from tests.world import World
from workers.contract import ClaimAnswer, CountSpec, TrainResult, WorkerFacts
from workers.contract.machines import GIB
from workers.contract.workload import count_tokens

pytestmark = pytest.mark.django_db

COUNTS = count_tokens([(80 + number % 20, 40) for number in range(180)], rows=180, seconds=1.0)


def worker(name: str = "gpu-1", **facts: Any) -> None:
    told = WorkerFacts(queue="gpu", **facts)
    Worker.objects.create(name=name, queue="gpu", facts=told.model_dump(mode="json"), seen_at=timezone.now())


def counted(world: World, data: DatasetVersion, base: BaseModel) -> TokenCount:
    count = request_count(by=world.expert, version=data, base=base, policy="traces")
    record_counts(count_id=count.pk, counts=COUNTS)
    return count


def estimated(data: DatasetVersion, base: BaseModel, **overrides: Any) -> RunEstimate:
    spec = resolve_spec(base=base, data=data, eval_data=None, preset="balanced", overrides=overrides)
    found = estimate_run(base=base, data=data, eval_data=None, spec=spec)
    assert found is not None
    return found


def test_a_guess_says_that_it_is_one_and_a_count_narrows_it(world: World) -> None:
    base, data = available_base(), data_version(world.expert)
    worker(memory_bytes=16 * GIB, cores=2)
    guess = estimated(data, base)
    assert guess.counting == "not_asked" and guess.estimate.rough
    count = request_count(by=world.expert, version=data, base=base, policy="traces")
    assert estimated(data, base).counting == "counting"
    record_counts(count_id=count.pk, counts=COUNTS)
    sure = estimated(data, base)
    assert sure.counting == "counted" and not sure.estimate.rough
    epochs = resolve_spec(base=base, data=data, eval_data=None, preset="balanced", overrides={}).epochs
    assert sure.estimate.tokens == pytest.approx(COUNTS.tokens * 0.9 * epochs, rel=0.01)

    def spread(found: RunEstimate) -> float:
        return found.estimate.seconds_high / found.estimate.seconds_low

    assert spread(sure) < spread(guess)


def test_a_count_is_one_cpu_job_for_a_version_base_and_policy(world: World) -> None:
    base, data = available_base(), data_version(world.expert)
    first = request_count(by=world.expert, version=data, base=base, policy="traces")
    assert request_count(by=world.lead, version=data, base=base, policy="traces") == first
    assert request_count(by=world.lead, version=data, base=base, policy="no_think") != first
    BaseModel.objects.filter(pk=base.pk).update(template_sha256="0" * 64)
    base.refresh_from_db()
    assert request_count(by=world.lead, version=data, base=base, policy="traces") != first
    assert Job.objects.filter(kind=Kind.COUNT, queue="cpu").count() == 3


def test_a_count_job_over_the_worker_api(world: World) -> None:
    base, data = available_base(), world.dataset()
    count = request_count(by=world.expert, version=data, base=base, policy="traces")
    worker = world.worker(count.job)
    answer = ClaimAnswer.model_validate(worker.claim())
    spec = CountSpec.model_validate(answer.spec)
    assert (answer.kind, answer.subject, spec.base_digest) == ("count", count.pk, base.digest)
    assert [(each.name, each.sha256) for each in answer.inputs] == [("data", data.sha256)]
    assert worker.post("finish", {"result": COUNTS.model_dump(mode="json")}).status_code == 200
    count.refresh_from_db()
    assert count.counts == COUNTS


def test_past_runs_correct_the_next_estimate_by_their_median(world: World) -> None:
    worker(memory_bytes=16 * GIB, cores=2)
    run = started_run(world.expert)
    base, data = run.base, run.data
    counted(world, data, base)
    before = estimated(data, base).estimate
    for number, slower in enumerate((1.5, 1.5, 9.0)):
        again = run if number == 0 else started_run(world.expert, data=data)
        record_measure(run=again, result=result(seconds=100 * slower, peak_memory_bytes=1_200))
    after = estimated(data, base).estimate
    assert (before.past_runs, after.past_runs) == (0, 3)
    assert after.seconds == pytest.approx(1.5 * before.seconds, rel=0.01)
    assert after.memory_bytes == pytest.approx(1.2 * before.memory_bytes, rel=0.01)
    assert after.seconds_high / after.seconds_low < before.seconds_high / before.seconds_low


def test_a_run_on_another_kind_of_machine_corrects_nothing(world: World) -> None:
    worker(memory_bytes=16 * GIB, cores=2)
    run = started_run(world.expert)
    record_measure(run=run, result=result(device="NVIDIA L4", seconds=900))
    assert estimated(run.data, run.base).estimate.past_runs == 0
    assert RunMeasure.objects.get().device_class == "L4"


@pytest.mark.parametrize("missing", ["device", "predicted_seconds", "predicted_memory_bytes"])
def test_a_run_that_predicted_nothing_leaves_no_measure(world: World, missing: str) -> None:
    empty = {"device": "", "predicted_seconds": 0.0, "predicted_memory_bytes": 0}
    record_measure(run=started_run(world.expert), result=result(**{missing: empty[missing]}))
    assert not RunMeasure.objects.exists()


def result(**changes: Any) -> TrainResult:
    fields: dict[str, Any] = {
        "steps": 30,
        "trained_tokens": 9000,
        "tokens_per_second": 200,
        "train_loss": 0.2,
        "heldout_loss": 0.3,
        "adapter": "adapter",
        "device": "cpu",
        "seconds": 100.0,
        "predicted_seconds": 100.0,
        "peak_memory_bytes": 1_000,
        "predicted_memory_bytes": 1_000,
    }
    return TrainResult(**{**fields, **changes})


def test_a_finished_run_keeps_prediction_and_measure(world: World) -> None:
    run = started_run(world.expert)
    manifest = manifest_of(run, result=result(seconds=130.0))
    record_measure(run=run, result=manifest.result)
    kept = RunMeasure.objects.get(run=run)
    assert (kept.predicted_seconds, kept.seconds, kept.device_class) == (100.0, 130.0, "cpu")
    assert kept.base_digest == run.spec.base_digest


def test_what_cannot_fit_is_refused_with_the_smallest_change(world: World) -> None:
    base, data = available_base(), data_version(world.expert)
    counted(world, data, base)
    needed = estimated(data, base, micro_batch_tokens=16, rank=32).estimate
    worker(memory_bytes=needed.memory_bytes // 2, cores=2)
    with pytest.raises(UserError) as caught:
        start_run(by=world.expert, adapter_name="clauses", base=base, data=data)
    assert caught.value.code == "does_not_fit" and "smaller base" in caught.value.next_step
    worker("gpu-2", memory_bytes=64 * GIB, cores=2)
    assert start_run(by=world.expert, adapter_name="clauses", base=base, data=data).job.kind == "train"


def test_a_guess_refuses_nothing_and_neither_does_an_unknown_fleet(world: World) -> None:
    worker(memory_bytes=GIB // 4, cores=2)
    guessed = start_run(
        by=world.expert, adapter_name="clauses", base=available_base(), data=data_version(world.expert)
    )
    Worker.objects.all().delete()
    counted(world, guessed.data, guessed.base)
    found = estimated(guessed.data, guessed.base)
    assert not found.machine_known and found.estimate.fits
    assert found.estimate.memory_low_bytes < 0.8 * found.estimate.memory_high_bytes


def test_machines_are_read_from_what_workers_say() -> None:
    [gpu, small] = machines_of(WorkerFacts(devices=["NVIDIA H100 80GB HBM3, 79.6 GiB", "NVIDIA L4"]))
    assert (gpu.device, gpu.name) == ("cuda", "NVIDIA H100 80GB HBM3")
    assert gpu.memory_bytes == int(79.6 * GIB * 0.95)
    assert 20 * GIB < small.memory_bytes < 24 * GIB
    [host] = machines_of(WorkerFacts(memory_bytes=8 * GIB, cores=4))
    assert (host.device, host.cores, host.memory_bytes) == ("cpu", 4, 8 * GIB)
    assert not list(machines_of(WorkerFacts()))


def test_a_worker_that_was_sent_away_is_no_machine(world: World) -> None:
    worker(memory_bytes=GIB, cores=2)
    assert machines("gpu") and not machines("cpu")
    Worker.objects.update(revoked_at=timezone.now())
    assert not machines("gpu")


# the panel -------------------------------------------------------------------------------------------------


def panel(world: World, method: str, data: DatasetVersion, **options: Any) -> str:
    by = options.pop("by", world.expert)
    client = world.client(by)
    form = {"data": data.pk, "base": DEMO_BASE, "preset": "balanced", **options}
    response = getattr(client, method)(f"/w/{by.workspace.slug}/runs/estimate/", form)
    assert response.status_code == 200, response.content
    return str(response.content.decode())


def test_the_panel_goes_from_guess_to_count(world: World) -> None:
    base, data = available_base(), data_version(world.expert)
    first = panel(world, "get", data)
    assert "counting now" in first and "hx-post" in first and not TokenCount.objects.exists()
    assert "hx-get" in panel(world, "post", data)
    counted(world, data, base)
    done = panel(world, "get", data)
    assert "From 180 rows counted with this base" in done and "hx-post" not in done and "hx-get" not in done


def test_the_panel_follows_the_settings(world: World) -> None:
    base, data = available_base(), data_version(world.expert)
    counted(world, data, base)
    assert panel(world, "get", data) != panel(world, "get", data, epochs="7")
    assert "Mend the setting" in panel(world, "get", data, rank="9999")
    fragment = world.client(world.expert).get(
        "/w/acme/runs/new/", {"data": data.pk, "base": DEMO_BASE}, headers={"hx-request": "true"}
    )
    assert b'hx-swap-oob="true"' in fragment.content


def test_an_outsider_can_neither_see_nor_have_counted_what_is_not_theirs(world: World) -> None:
    available_base()
    data = data_version(world.expert)
    for method in ("get", "post"):
        assert "Choose data and a base" in panel(world, method, data, by=world.outsider)
        response = getattr(world.client(world.outsider), method)("/w/acme/runs/estimate/", {"data": data.pk})
        assert response.status_code == 404
    assert not TokenCount.objects.exists()
