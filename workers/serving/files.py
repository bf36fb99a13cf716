"""Adapter files on this host: complete, checked folders ADAPTERS_DIR/<digest>, or nothing."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from workers.contract import AdapterManifest, Sha256, WantedVersion
from workers.contract.weights import digest_base
from workers.wire.transfer import Patience, download, make_client, sha256_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}@([0-9a-f]{12})")
"""Immutable serving name: `<adapter>@<first 12 of the digest>`."""
DIGEST = re.compile(r"[0-9a-f]{64}")
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 64 * 1024 * 1024
ADAPTER_FILES = {"adapter_model.safetensors", "adapter_config.json"}
TARGET_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""The linear layers that engines are started with LoRA for (`--lora-target-modules`)."""
PLAIN_INITS = {"true", "false", "gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Ways of initialising LoRA that leave the base as it is; PiSSA, OLoRA, CorDA and LoftQ change it."""
UNSERVABLE = {
    "modules_to_save": "whole modules saved beside the LoRA matrices",
    "use_dora": "DoRA",
    "lora_bias": "biases",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on bare parameters",
}
"""Settings of adapter_config.json that the engine refuses or, worse, ignores, and what they are."""


class VersionRefused(Exception):
    """These files must not be served here. The text is a sentence for the pool page."""


SPARE = 0.1
"""Share of the disk that is kept free: below, unused files go sooner."""


class DiskFull(Exception):
    """There is no room for a version. The text is a sentence for the pool page."""


class AdapterCache:
    """The folders of ADAPTERS_DIR. One agent owns it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        for leftover in self._folder.glob("*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)

    def path(self, digest: Sha256) -> Path:
        """Where the version's files are, or will be; absolute."""
        if not DIGEST.fullmatch(digest):
            raise ValueError("a digest is 64 hexadecimal characters")
        return self._folder / digest

    def held(self) -> frozenset[Sha256]:
        """Digests whose folder is complete."""
        return frozenset(path.name for path in self._folder.iterdir() if DIGEST.fullmatch(path.name))

    def is_crowded(self) -> bool:
        """Whether the disk is nearly full."""
        disk = shutil.disk_usage(self._folder)
        return disk.free < SPARE * disk.total

    def fetch(self, version: WantedVersion, *, max_rank: int, check: Callable[[], None]) -> None:
        """Download, check and only then let the folder appear.

        Raises VersionRefused, DiskFull, TransferError, OSError.
        """
        names = {file.name for file in version.files}
        if names != ADAPTER_FILES | {MANIFEST} or len(names) != len(version.files):
            raise VersionRefused(f"A version is made of {MANIFEST}, {' and '.join(sorted(ADAPTER_FILES))}.")
        self._check_room(sum(file.size for file in version.files))
        partial = self._folder / f"{version.digest}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            with make_client() as client:
                for file in version.files:
                    target = partial / file.name
                    download(
                        client,
                        file.url,
                        target,
                        size=file.size,
                        sha256=file.sha256,
                        patience=Patience(check=check),
                    )
            check_folder(partial, version.digest, max_rank=max_rank)
            os.replace(partial, self.path(version.digest))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full("it filled up while the version was fetched") from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if size > free:
            raise self._full(f"the version needs {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free")

    def _full(self, why: str) -> DiskFull:
        return DiskFull(
            f"The disk under ADAPTERS_DIR of this replica is full: {why}. Free space there; the agent tries "
            "again by itself."
        )

    def delete(self, digest: Sha256) -> None:
        """Remove a version's files. The caller has made sure that the engine will not read them again."""
        doomed = self._folder / f"{digest}.partial"
        os.replace(self.path(digest), doomed)  # never half a folder under the digest's name
        shutil.rmtree(doomed, ignore_errors=True)


def read_manifest(folder: Path, digest: Sha256) -> AdapterManifest:
    """The manifest of a folder, which has the digest of the version. Raises VersionRefused and OSError."""
    if sha256_of(folder / MANIFEST) != digest:
        raise VersionRefused(
            f"{MANIFEST} does not have the digest of this version: it was changed or damaged."
        )
    if (folder / MANIFEST).stat().st_size > LARGEST_MANIFEST:
        raise VersionRefused(f"{MANIFEST} is too large to be one.")
    try:
        return AdapterManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError:
        raise VersionRefused(f"{MANIFEST} is not an adapter manifest this agent can read.") from None


def check_folder(folder: Path, digest: Sha256, *, max_rank: int) -> AdapterManifest:
    """The manifest of a folder whose every byte is as it says, and which the engine can apply as trained."""
    manifest = read_manifest(folder, digest)
    if {file.name for file in manifest.files} != ADAPTER_FILES:
        raise VersionRefused(f"{MANIFEST} does not list exactly {' and '.join(sorted(ADAPTER_FILES))}.")
    for file in manifest.files:
        if sha256_of(folder / file.name) != file.sha256:
            raise VersionRefused(
                f"{file.name} does not have the sha256 in the manifest: it was changed or damaged."
            )
    check_config((folder / "adapter_config.json").read_bytes(), max_rank=max_rank)
    return manifest


def check_config(text: bytes, *, max_rank: int) -> None:
    """Refuse what the engine cannot apply as it was trained, before the engine sees it."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise VersionRefused("adapter_config.json does not describe a LoRA adapter.")
    rank = config.get("r")
    patterns = [config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}]
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max_rank:
        raise VersionRefused(
            f"The adapter's rank is {str(rank)[:20]}; this pool serves ranks 1 to {max_rank}."
        )
    if not _targets(config) <= TARGET_MODULES:
        raise VersionRefused(f"The adapter changes other layers than {', '.join(sorted(TARGET_MODULES))}.")
    if any(patterns):
        raise VersionRefused(
            "The adapter uses ranks or alphas that differ by module; train it with one of each."
        )
    for setting, what in UNSERVABLE.items():
        if config.get(setting):
            raise VersionRefused(f"The adapter uses {what} ({setting}), which the engine cannot serve.")
    if config.get("bias", "none") != "none":
        raise VersionRefused("The adapter trains biases (bias), which the engine cannot serve.")
    if str(config.get("init_lora_weights", True)).lower() not in PLAIN_INITS:
        raise VersionRefused(
            "The adapter's init_lora_weights changes the base's own weights; it cannot be served."
        )


def _targets(config: dict[str, object]) -> set[str]:
    """Names of the layers the adapter changes; a pattern stands for itself, and so is no known one."""
    targets = config.get("target_modules")
    return {str(target) for target in targets} if isinstance(targets, list) else {str(targets)}


def check_base(manifest: AdapterManifest, base: str, base_digest: Sha256) -> None:
    """Refuse an adapter of another base: with the same shapes it would load, and answer nonsense."""
    if manifest.base.digest != base_digest:
        raise VersionRefused(
            f"The adapter was trained on {manifest.base.name} with digest {manifest.base.digest[:12]}…; "
            f"this replica serves {base} with digest {base_digest[:12]}…."
        )


def check_name(version: WantedVersion) -> None:
    """Refuse a name that is not the immutable name of this digest."""
    found = NAME.fullmatch(version.name)
    if not found or not version.digest.startswith(found.group(1)):
        raise VersionRefused(
            "The platform wants this version under a name that is not <adapter>@<first 12 of the digest>: it "
            "is not loaded. Tell your operator; the registry's row was changed."
        )


def base_digest(bases_dir: Path, base: str, memory: Path) -> Sha256:
    """Digest of the base's weights, remembered in `memory` for as long as the files look the same."""
    folder = bases_dir / base
    if "/" in base or base.startswith(".") or not folder.is_dir():
        raise VersionRefused(f"The engine serves {base[:80]!r}, which is not a folder of BASES_DIR.")
    stats = sorted(
        (file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in folder.glob("*.safetensors")
    )
    seen = json.dumps([str(folder), stats])
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["seen"] == seen and DIGEST.fullmatch(known["digest"]):
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = digest_base(folder)
    memory.write_text(json.dumps({"seen": seen, "digest": digest}), encoding="utf-8")
    return digest
