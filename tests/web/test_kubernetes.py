"""The Kubernetes manifests: valid by the schemas of Kubernetes, and the same processes as everywhere."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from workers.serving.health import DRAIN_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "deploy" / "k8s"
RELEASES = ("1.34", "1.37")
"""Of Kubernetes: an older one that is still kept up, and the newest with schemas. Sidecars need 1.33."""
Object = dict[str, Any]


def manifests() -> list[Object]:
    files = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [
        item for name in files for item in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
    ]


def called(item: Object) -> str:
    return f"{item['kind']} {item['metadata']['name']}"


def pods() -> Iterator[tuple[str, Object]]:
    for item in manifests():
        if "template" in item["spec"]:
            yield called(item), item["spec"]["template"]["spec"]


def containers() -> Iterator[tuple[str, Object]]:
    for name, pod in pods():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{name}: {container['name']}", container


def container(name: str) -> Object:
    [found] = [one for _, one in containers() if one["name"] == name]
    return found


def environment(one: Object) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in one.get("env", [])}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("item", manifests(), ids=called)
def test_every_object_follows_the_schema(item: Object, release: str) -> None:
    kubernetes_validate.validate(item, release, strict=True)


def test_the_schema_would_notice() -> None:
    item = next(item for item in manifests() if item["kind"] == "Deployment")
    item["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, RELEASES[-1], strict=True)


def test_every_file_is_applied() -> None:
    named = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert {path.name for path in FOLDER.glob("*.yaml")} == {*named, "kustomization.yaml"}


def test_selectors_find_their_pods() -> None:
    labels = {
        called(i): i["spec"]["template"]["metadata"]["labels"] for i in manifests() if "template" in i["spec"]
    }
    for item in manifests():
        selector = item["spec"].get("selector", {})
        wanted = selector.get("matchLabels", selector if item["kind"] == "Service" else {})
        if wanted:
            assert any(wanted.items() <= found.items() for found in labels.values()), called(item)


def test_no_secret_stands_in_a_manifest() -> None:
    for name, one in containers():
        for variable in environment(one):
            secret = re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|DATABASE_URL|BROKER_URL", variable)
            assert not secret or variable.endswith("_FILE"), f"{name}: {variable}"
    assert not [item for item in manifests() if item["kind"] == "Secret"], (
        "they are made by hand, by reference"
    )


def test_no_container_may_gain_rights_and_no_image_floats() -> None:
    for name, one in containers():
        context = one["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {
            "drop": ["ALL"]
        }, name
        assert re.search(r":v?\d+\.\d+\.\d+$", one["image"]), name
        assert "memory" in one["resources"]["limits"], name
    for name, pod in pods():
        assert pod["automountServiceAccountToken"] is False, name


def test_processes_are_those_of_compose() -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    for name in ("web", "keeper", "worker-cpu", "worker-gpu", "agent"):
        ours, theirs = container(name)["args"], compose[name]["command"]
        assert ours[: len(theirs) - 1] == theirs[:-1], name
    sized = {"--served-model-name", "--max-model-len", "--host", "--port"}
    ours, theirs = container("vllm")["args"], compose["vllm"]["command"]
    assert [word for word in ours if word.startswith("--")] == [w for w in theirs if str(w).startswith("--")]
    pairs = pairwise(ours), pairwise(theirs)
    kept = [[pair for pair in side if pair[0].startswith("--") and pair[0] not in sized] for side in pairs]
    assert kept[0] == kept[1]


def test_the_agent_knows_what_the_engine_was_started_with() -> None:
    arguments, told = container("vllm")["args"], environment(container("agent"))
    engine = dict(pairwise(arguments))
    assert told["MAX_LORA_RANK"] == engine["--max-lora-rank"]
    assert told["MAX_CPU_LORAS"] == engine["--max-cpu-loras"]
    assert arguments[0] == f"{told['BASES_DIR']}/{engine['--served-model-name']}"
    mounts = [{m["name"]: m["mountPath"] for m in container(n)["volumeMounts"]} for n in ("vllm", "agent")]
    assert mounts[0]["adapters"] == mounts[1]["adapters"] == told["ADAPTERS_DIR"], "one path for both"


def test_an_engine_joins_when_it_is_ready_and_drains_before_it_stops() -> None:
    [(_, pod)] = [(name, pod) for name, pod in pods() if name == "Deployment pool-demo"]
    agent, engine = container("agent"), container("vllm")
    port = environment(agent)["HEALTH_PORT"]
    assert agent["restartPolicy"] == "Always", "a sidecar outlives the engine's drain"
    assert f"127.0.0.1:{port}/ready" in agent["readinessProbe"]["exec"]["command"][-1]
    hook = engine["lifecycle"]["preStop"]["exec"]["command"][-1]
    compile(hook, "preStop", "exec")
    compile(agent["readinessProbe"]["exec"]["command"][-1], "readiness", "exec")
    assert f"127.0.0.1:{port}/drain" in hook
    assert DRAIN_SECONDS < 560 < pod["terminationGracePeriodSeconds"]
