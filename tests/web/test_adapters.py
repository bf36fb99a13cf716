"""The registry: versions are numbered, immutable, and what the run made."""

from typing import Any

import pytest

from stillhouse.adapters.actions import register_version
from stillhouse.adapters.models import CANDIDATE, AdapterVersion
from stillhouse.adapters.queries import adapters, get_version, lineage, versions
from stillhouse.core.errors import Conflict, NotFound, UserError
from tests.registry import at_once, candidate, data_version, files_of, manifest_of, register, sha, started_run
from tests.world import World
from workers.contract import BaseReference, OutputFile

pytestmark = pytest.mark.django_db


def test_a_run_that_ended_well_becomes_a_candidate_with_its_lineage(world: World) -> None:
    run = started_run(world.expert, eval_data=data_version(world.expert, "Held out"))
    version = register(run)
    assert (version.number, version.state) == (1, CANDIDATE)
    assert version.serving_name == f"contract-clauses@{version.digest[:12]}"
    assert version.manifest == manifest_of(run)
    assert version.size == 5500 + version.manifest_size
    line = lineage(get_version(world.lead, version.serving_name))
    assert (line.run, line.data, line.eval_data, line.base) == (run, run.data, run.eval_data, run.base)


def test_versions_of_a_name_count_up_and_the_same_run_is_registered_once(world: World) -> None:
    run = started_run(world.expert)
    first, again = register(run), register(run)
    assert first == again
    assert [candidate(world.expert).number, candidate(world.expert, adapter_name="other").number] == [2, 1]
    assert [adapter.name for adapter in adapters(world.expert)] == ["contract-clauses", "other"]


def test_a_second_other_version_of_a_run_is_refused(world: World) -> None:
    run = started_run(world.expert)
    register(run)
    other = manifest_of(run, versions={"peft": "1"})
    digest = sha(other.model_dump_json())
    with pytest.raises(Conflict) as caught:
        register_version(run=run, manifest=other, digest=digest, files=files_of(other, digest))
    assert caught.value.code == "run_has_version"


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "run_of_somebody_else"},
        {"data_sha256": sha("other data")},
        {"template_sha256": sha("other template")},
        {"base": BaseReference(name="qwen3-8b", revision="", digest=sha("weights of smollm2-135m-instruct"))},
        {"base": BaseReference(name="smollm2-135m-instruct", revision="", digest=sha("other weights"))},
    ],
)
def test_a_manifest_of_something_else_is_refused(world: World, changes: dict[str, Any]) -> None:
    run = started_run(world.expert)
    manifest = manifest_of(run, **changes)
    digest = sha(manifest.model_dump_json())
    with pytest.raises(UserError) as caught:
        register_version(run=run, manifest=manifest, digest=digest, files=files_of(manifest, digest))
    assert caught.value.code == "manifest_mismatch"
    assert not AdapterVersion.objects.exists()


def test_files_must_be_exactly_those_of_the_manifest(world: World) -> None:
    run = started_run(world.expert)
    manifest = manifest_of(run)
    digest = sha(manifest.model_dump_json())
    files = files_of(manifest, digest)
    swapped = files[0].model_copy(update={"sha256": sha("flipped byte")})
    extra = OutputFile(name="evil.bin", size=1, sha256=sha("evil"))
    for wrong in (files[1:], files[:-1], [swapped, *files[1:]], [*files, extra]):
        with pytest.raises(UserError) as caught:
            register_version(run=run, manifest=manifest, digest=digest, files=wrong)
        assert caught.value.code == "manifest_mismatch"
    with pytest.raises(UserError):
        register_version(run=run, manifest=manifest, digest=sha("another"), files=files)


def test_two_workspaces_may_use_the_same_adapter_name(world: World) -> None:
    ours, theirs = candidate(world.expert), candidate(world.outsider)
    assert ours.adapter.name == theirs.adapter.name and ours.serving_name != theirs.serving_name


def test_an_outsider_finds_nothing(world: World) -> None:
    version = candidate(world.expert)
    for name in (version.id, version.serving_name):
        with pytest.raises(NotFound):
            get_version(world.outsider, name)
        assert get_version(world.expert, name) == version
    assert not versions(world.outsider).exists() and not adapters(world.outsider).exists()


@pytest.mark.django_db(transaction=True)
def test_runs_that_end_at_once_get_numbers_of_their_own(world: World) -> None:
    runs = [started_run(world.expert) for _ in range(5)]
    made = at_once(*[lambda run=run: register(run) for run in runs])
    assert sorted(version.number for version in made) == [1, 2, 3, 4, 5]


@pytest.mark.django_db(transaction=True)
def test_one_run_registered_twice_at_once_is_one_version(world: World) -> None:
    run = started_run(world.expert)
    made = at_once(*[lambda: register(run)] * 4)
    assert len({version.id for version in made}) == 1
