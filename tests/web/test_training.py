"""Presets, and starting and cancelling runs."""

from typing import Any

import pytest

from stillhouse.audit.models import AuditEvent
from stillhouse.catalog.actions import sync_catalog
from stillhouse.catalog.models import BaseModel
from stillhouse.core.errors import Conflict, NotFound, UserError
from stillhouse.datasets.models import DatasetVersion
from stillhouse.jobs.claiming import claim_job
from stillhouse.jobs.models import CANCELLED, RUNNING, Job, Kind, Outbox
from stillhouse.training.actions import cancel_run, start_run
from stillhouse.training.models import Preset, TrainingRun
from stillhouse.training.presets import SETTINGS, estimate_steps, group_columns, resolve_spec
from stillhouse.training.queries import get_run, runs
from tests.registry import DEMO_BASE, available_base, data_version, sha, started_run
from tests.world import World
from workers.contract import TrainSpec

pytestmark = pytest.mark.django_db


def resolved(
    world: World, *, base: BaseModel | None = None, preset: str = "balanced", **options: Any
) -> TrainSpec:
    overrides = options.pop("overrides", {})
    with_eval = options.pop("with_eval", False)
    return resolve_spec(
        base=base or available_base(),
        data=data_version(world.expert, **options),
        eval_data=data_version(world.expert, "Held out", valid=36) if with_eval else None,
        preset=preset,
        overrides=overrides,
    )


def _chosen(place: str, version: DatasetVersion) -> dict[str, Any]:
    return {place: version}


def bad_setting(world: World, **overrides: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        resolved(world, overrides=overrides)
    return caught.value


def test_balanced_on_the_demonstration_is_thirty_steps_of_what_was_proven(world: World) -> None:
    spec = resolved(world, with_eval=True)
    assert (spec.rank, spec.alpha, spec.learning_rate, spec.batch_size) == (16, 32, 1e-3, 6)
    assert (spec.epochs, estimate_steps(spec, 180), spec.heldout_share) == (1.0, 30, 0.0)
    assert (spec.think_policy, spec.quantization, spec.max_length) == ("traces", "nf4", 2048)
    assert 0 < spec.checkpoint_every < 30


def test_presets_differ_in_effort(world: World) -> None:
    steps = [estimate_steps(resolved(world, preset=preset, with_eval=True), 180) for preset in Preset.values]
    assert steps == sorted(steps) and len(set(steps)) == 3
    ranks = [resolved(world, preset=preset).rank for preset in Preset.values]
    assert ranks == [8, 16, 32]


@pytest.mark.parametrize("preset", Preset.values)
@pytest.mark.parametrize("valid", [1, 7, 180, 5_000, 400_000])
def test_presets_give_a_sane_run_for_any_number_of_rows(world: World, preset: str, valid: int) -> None:
    spec = resolved(world, preset=preset, valid=valid, with_reasoning=0)
    steps = estimate_steps(spec, valid)
    assert 1 <= steps <= valid * 10
    assert 4 <= spec.batch_size <= 32
    assert preset != "quick" or steps <= 200


def test_a_large_base_gets_gentle_steps_and_room_to_think(world: World) -> None:
    available_base()
    spec = resolved(world, base=available_base("deepseek-r1-0528-qwen3-8b"))
    assert spec.learning_rate == 2e-4 and spec.epochs == 2.0
    assert spec.max_length == 8192 <= BaseModel.objects.get(pk="deepseek-r1-0528-qwen3-8b").context_length


def test_a_share_is_held_out_without_evaluation_data(world: World) -> None:
    assert resolved(world).heldout_share == 0.1
    assert resolved(world, valid=30).heldout_share == 0.2
    assert resolved(world, with_eval=True).heldout_share == 0


@pytest.mark.parametrize(
    ("base", "with_reasoning", "policy"),
    [
        (DEMO_BASE, 180, "traces"),
        (DEMO_BASE, 10, "no_think"),
        ("qwen3-8b", 180, "traces"),
        ("qwen3-8b", 0, "answer_only"),
    ],
)
def test_the_think_policy_follows_the_data(world: World, base: str, with_reasoning: int, policy: str) -> None:
    assert resolved(world, base=available_base(base), with_reasoning=with_reasoning).think_policy == policy


def test_the_spec_pins_base_template_and_data(world: World) -> None:
    base, data, held = available_base(), data_version(world.expert), data_version(world.expert, "Held out")
    spec = resolve_spec(base=base, data=data, eval_data=held, preset="quick", overrides={})
    assert (spec.base, spec.base_digest, spec.template_sha256) == (base.id, base.digest, base.template_sha256)
    assert (spec.data_sha256, spec.eval_sha256) == (data.sha256, held.sha256)
    assert spec.think == base.think_contract


def test_what_a_person_sets_counts_also_as_text_from_a_form(world: World) -> None:
    spec = resolved(
        world, overrides={"rank": "32", "learning_rate": 5e-4, "epochs": "2", "max_steps": "", "seed": 7}
    )
    assert (spec.rank, spec.learning_rate, spec.epochs, spec.seed, spec.max_steps) == (32, 5e-4, 2.0, 7, 0)
    assert resolved(world, overrides={"checkpoint_every": 3}).checkpoint_every == 3


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("learning_rat", 1, "unknown_setting"),
        ("base_digest", sha("x"), "unknown_setting"),
        ("data_sha256", sha("x"), "unknown_setting"),
        ("golden_samples", 0, "unknown_setting"),
        ("rank", 65, "rank_too_large"),
        ("rank", 0, "bad_setting"),
        ("rank", "many", "bad_setting"),
        ("rank", 1.5, "bad_setting"),
        ("learning_rate", "nan", "bad_setting"),
        ("learning_rate", -1, "bad_setting"),
        ("learning_rate", 0.02, "learning_rate_out_of_range"),
        ("learning_rate", 1e-8, "learning_rate_out_of_range"),
        ("use_dora", "true", "unknown_setting"),
        ("modules_to_save", "lm_head", "unknown_setting"),
        ("weight_decay", "inf", "bad_setting"),
        ("max_grad_norm", "inf", "bad_setting"),
        ("epochs", 1000, "bad_setting"),
        ("seed", -1, "bad_setting"),
        ("seed", 2**70, "bad_setting"),
        ("max_length", 8193, "max_length_too_long"),
        ("heldout_share", 0.6, "bad_setting"),
        ("heldout_share", 0, "nothing_to_evaluate_on"),
        ("think_policy", "none", "bad_setting"),
        ("quantization", "int1", "bad_setting"),
    ],
)
def test_a_bad_setting_is_refused_with_its_name(world: World, name: str, value: Any, code: str) -> None:
    error = bad_setting(world, **{name: value})
    assert (error.code, error.place) == (code, name)
    assert error.message and error.next_step


def test_holding_out_beside_evaluation_data_is_refused(world: World) -> None:
    with pytest.raises(UserError) as caught:
        resolved(world, with_eval=True, overrides={"heldout_share": 0.1})
    assert caught.value.code == "heldout_twice"


def test_rows_of_one_customer_may_be_held_out_together(world: World) -> None:
    data = data_version(world.expert)
    data.report.body["doctor"] = {"fields": {"metadata.customer": 180}}

    def with_group(column: str, eval_data: DatasetVersion | None = None) -> TrainSpec:
        return resolve_spec(
            base=available_base(),
            data=data,
            eval_data=eval_data,
            preset="balanced",
            overrides={"heldout_group": column},
        )

    assert group_columns(data) == ["metadata.customer"]
    assert with_group("metadata.customer").heldout_group == "metadata.customer"
    with pytest.raises(UserError, match="no column") as caught:
        with_group("customer")
    assert caught.value.code == "no_such_column" and "metadata.customer" in caught.value.next_step
    with pytest.raises(UserError) as caught:
        with_group("metadata.customer", data_version(world.expert, "Held out", valid=36))
    assert (caught.value.code, caught.value.place) == ("heldout_twice", "heldout_group")


def test_every_setting_a_person_may_set_is_one_of_the_spec() -> None:
    assert set(SETTINGS) <= set(TrainSpec.model_fields)


def test_start_run_writes_run_job_doorbell_and_trail_together(world: World) -> None:
    run = started_run(world.expert, overrides={"rank": 4})
    job = Job.objects.get(pk=run.job_id)
    assert (job.kind, job.queue, job.subject, job.state) == (Kind.TRAIN, "gpu", run.id, "queued")
    assert job.spec == run.spec_body and run.spec.rank == 4
    assert Outbox.objects.filter(job=job).count() == 1
    event = AuditEvent.objects.get(object_id=run.id)
    assert (event.action, event.actor) == ("run.started", world.expert.user)


@pytest.mark.parametrize(
    "name", ["../etc", "a/b", "", "Ünï", "a@b", "-a", "a-", "A", "x" * 61, "a b", "a\n", DEMO_BASE]
)
def test_a_name_that_is_no_name_is_refused_and_nothing_is_written(world: World, name: str) -> None:
    with pytest.raises(UserError) as caught:
        started_run(world.expert, adapter_name=name)
    assert caught.value.code == ("name_taken_by_base" if name == DEMO_BASE else "bad_name")
    assert caught.value.place == "adapter_name"
    assert not TrainingRun.objects.exists() and not Job.objects.filter(kind=Kind.TRAIN).exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [({"checked": False}, "not_checked_yet"), ({"valid": 0, "with_reasoning": 0}, "nothing_trainable")],
)
def test_data_that_cannot_be_trained_on_is_refused(world: World, options: dict[str, Any], code: str) -> None:
    bad = data_version(world.expert, **options)
    for place in ("data", "eval_data"):
        with pytest.raises(UserError) as caught:
            started_run(world.expert, **_chosen(place, bad))
        assert (caught.value.code, caught.value.place) == (code, place)


def test_evaluating_on_the_training_data_is_refused(world: World) -> None:
    data = data_version(world.expert)
    with pytest.raises(UserError) as caught:
        started_run(world.expert, data=data, eval_data=data)
    assert caught.value.code == "same_data"


def test_a_base_must_be_known_and_here(world: World) -> None:
    sync_catalog()
    data = data_version(world.expert)
    for base, code in (
        (DEMO_BASE, "base_not_available"),
        ("gpt-17", "unknown_base"),
        ("../x", "unknown_base"),
    ):
        with pytest.raises(UserError) as caught:
            start_run(by=world.expert, adapter_name="a", base=base, data=data)
        assert caught.value.code == code


def test_an_outsider_finds_nothing(world: World) -> None:
    run = started_run(world.expert)
    with pytest.raises(NotFound):
        get_run(world.outsider, run.id)
    with pytest.raises(NotFound):
        cancel_run(by=world.outsider, run=run)
    for place in ("data", "eval_data"):
        with pytest.raises(NotFound):
            started_run(world.outsider, **_chosen(place, run.data))
    assert not runs(world.outsider).exists()
    assert get_run(world.lead, run.id) == run


def test_cancelling_a_waiting_run_ends_it_and_twice_says_so(world: World) -> None:
    run = started_run(world.expert)
    cancel_run(by=world.expert, run=run)
    assert Job.objects.get(pk=run.job_id).state == CANCELLED
    with pytest.raises(Conflict) as caught:
        cancel_run(by=world.expert, run=run)
    assert caught.value.code == "run_ended"


def test_cancelling_a_running_run_asks_its_worker(world: World) -> None:
    run = started_run(world.expert)
    claim_job(job_id=run.job_id, worker="w")
    cancel_run(by=world.lead, run=run)
    job = Job.objects.get(pk=run.job_id)
    assert job.state == RUNNING and job.cancel_requested_at is not None
