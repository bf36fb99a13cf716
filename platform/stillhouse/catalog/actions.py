"""Writes of the catalog: its rows come from `bases`, and weights are added on the machine by its operator.

Bases belong to the site and not to a workspace, so these actions take no membership: only somebody with a
shell on the machine reaches them.
"""

import re
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from stillhouse.catalog.bases import BASES
from stillhouse.catalog.folder import read_config, read_folder
from stillhouse.catalog.models import BaseModel
from stillhouse.catalog.queries import get_base
from stillhouse.core.errors import Conflict, UserError


def sync_catalog() -> list[str]:
    """Make the rows of the database say what `bases.BASES` says, in one statement, and return the ids.

    What was added on this site stays as it is.
    """
    rows = {
        base.id: {
            "name": base.name,
            "hub_id": base.hub_id,
            "revision": base.revision,
            "licence": base.licence,
            "parameters": base.parameters,
            "context_length": base.context_length,
            "think": base.think.model_dump(mode="json"),
            "lora_targets": list(base.lora_targets),
            "max_rank": base.max_rank,
            "description": base.description,
        }
        for base in BASES
    }
    BaseModel.objects.bulk_create(
        [BaseModel(id=id, **fields) for id, fields in rows.items()],
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=list(next(iter(rows.values()))),
    )
    return list(rows)


def add_base(source: str | Path, *, base_id: str | None = None, replace: bool = False) -> BaseModel:
    """Make a base available from a folder of weights, given by path or by its name in BASES_DIR; returns its
    row.

    Which base it is comes from `base_id`, else from the folder's name or its config.json. Weights are added
    once: others under the same id need `replace`, because adapters trained on the earlier ones no longer
    fit.
    """
    path = _folder(source)
    base = get_base(base_id or _recognise(path))
    folder = read_folder(path)
    if base.digest and base.digest != folder.digest and not replace:
        raise Conflict(
            "base_already_added",
            f"{base.id} was added with other weights ({base.digest[:12]}…, these are {folder.digest[:12]}…).",
            "Adapters trained on it would not fit these. Add them with --replace if that is meant.",
        )
    base.path, base.digest, base.template_sha256 = str(path), folder.digest, folder.template_sha256
    base.shape_body = folder.shape.model_dump(mode="json")
    base.added_at = timezone.now()
    base.save(update_fields=["path", "digest", "template_sha256", "shape_body", "added_at"])
    return base


def _folder(source: str | Path) -> Path:
    """A path as given, when there is such a folder; else a folder of that name in BASES_DIR."""
    given = Path(source).expanduser()
    if given.is_dir():
        return given.resolve()
    in_bases = Path(settings.BASES_DIR) / str(source)
    if len(Path(source).parts) == 1 and given.name not in ("", "..") and in_bases.is_dir():
        return in_bases.resolve()
    raise UserError(
        "no_such_folder",
        f"There is no folder {source}, and none of that name in {settings.BASES_DIR}.",
        "path",
        "Copy the base's files there (config, tokenizer, safetensors) and give the folder.",
    )


def _recognise(path: Path) -> str:
    """The catalog id that a folder's name, or the name in its config.json, stands for."""
    known = {_plain(name): base.id for base in BASES for name in (base.id, base.hub_id.rsplit("/", 1)[-1])}
    config_name = (
        str(read_config(path / "config.json").get("_name_or_path", "")).rstrip("/").rsplit("/", 1)[-1]
    )
    for name in (path.name, config_name):
        if found := known.get(_plain(name)):
            return found
    raise UserError(
        "unknown_base",
        f"The folder {path.name} is not named like a base of the catalog.",
        "path",
        "Say which one it is with --id; `manage.py base list` shows them.",
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())
