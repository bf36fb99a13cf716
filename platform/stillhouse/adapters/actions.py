"""Writes of the registry. Versions are made by training runs that ended well, and never changed."""

from collections.abc import Sequence

from django.db import transaction
from django.db.models import Max

from stillhouse.adapters.models import Adapter, AdapterVersion
from stillhouse.audit.actions import record
from stillhouse.core.errors import Conflict, UserError
from stillhouse.training.models import TrainingRun
from workers.contract import AdapterManifest, OutputFile

MANIFEST = "manifest.json"
DIGEST_CHARS = 12


def serving_name(adapter_name: str, digest: str) -> str:
    """The immutable name a version is loaded under: `<adapter>@<first 12 of digest>`."""
    return f"{adapter_name}@{digest[:DIGEST_CHARS]}"


@transaction.atomic
def register_version(
    *, run: TrainingRun, manifest: AdapterManifest, digest: str, files: Sequence[OutputFile]
) -> AdapterVersion:
    """Add what a run made as the adapter's next version, a candidate. The same call again gives the same
    version.

    `files` is everything that was kept, manifest.json included; `digest` is the sha256 of manifest.json.
    Raises UserError `manifest_mismatch` when the manifest does not speak of this run and these files.
    """
    kept = {file.name: file for file in files}
    _check_manifest(run, manifest, digest, kept)
    adapter = _locked_adapter(run)
    existing = AdapterVersion.objects.filter(run=run).first()
    if existing:
        if existing.digest != digest:
            raise Conflict("run_has_version", f"The run has made {existing} already.")
        return existing
    version = AdapterVersion.objects.create(
        adapter=adapter,
        number=(adapter.versions.aggregate(last=Max("number"))["last"] or 0) + 1,
        digest=digest,
        serving_name=serving_name(adapter.name, digest),
        run=run,
        manifest_body=manifest.model_dump(mode="json"),
        manifest_size=kept[MANIFEST].size,
        size=sum(file.size for file in kept.values()),
    )
    record(
        workspace=run.workspace,
        by=None,
        action="version.registered",
        object_id=version.id,
        object_name=str(version),
        details={"digest": digest, "run": run.id},
    )
    return version


def _locked_adapter(run: TrainingRun) -> Adapter:
    """The adapter's row, locked to the end of the transaction: one number is given out at a time."""
    Adapter.objects.get_or_create(workspace=run.workspace, name=run.adapter_name)
    return Adapter.objects.select_for_update().get(workspace=run.workspace, name=run.adapter_name)


def _check_manifest(
    run: TrainingRun, manifest: AdapterManifest, digest: str, kept: dict[str, OutputFile]
) -> None:
    spec = run.spec
    facts = [
        ("run", manifest.run, run.id),
        ("base", manifest.base.name, spec.base),
        ("base digest", manifest.base.digest, spec.base_digest),
        ("template digest", manifest.template_sha256, spec.template_sha256),
        ("data digest", manifest.data_sha256, spec.data_sha256),
        ("training spec", manifest.spec, spec),
        ("manifest digest", kept[MANIFEST].sha256 if MANIFEST in kept else "", digest),
    ]
    for what, said, expected in facts:
        if said != expected:
            raise _mismatch(f"The {what} in the manifest is {str(said)[:80]!r}, not {str(expected)[:80]!r}.")
    for file in manifest.files:
        arrived = kept.get(file.name)
        if arrived is None or (arrived.sha256, arrived.size) != (file.sha256, file.size):
            raise _mismatch(f"{file.name} is not the file that the manifest names.")
    if extra := kept.keys() - {MANIFEST, *(file.name for file in manifest.files)}:
        raise _mismatch(f"{min(extra)} is not named in the manifest.")


def _mismatch(message: str) -> UserError:
    return UserError("manifest_mismatch", message, MANIFEST, "Train again; if it happens twice, report it.")
