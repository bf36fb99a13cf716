"""The adapter manifest: what makes an adapter version one thing, and provable."""

from typing import Literal

from pydantic import Field

from workers.contract.base import FileName, Message, Sha256
from workers.contract.training import ThinkContract, TrainResult, TrainSpec


class ManifestFile(Message):
    name: FileName
    size: int = Field(ge=0)
    """Bytes."""
    sha256: Sha256


class BaseReference(Message):
    name: str
    """Catalog id."""
    revision: str
    digest: Sha256
    """sha256 over the sorted lines `<sha256>  <name>` of the base's weight files."""


class GoldenSample(Message):
    """One prompt and target with the log-probabilities that the trained model gave, at the end of
    training."""

    prompt_ids: list[int] = Field(min_length=1)
    target_ids: list[int] = Field(min_length=1)
    logprobs: list[float]
    """Of each target token, adapter applied, in nats; as long as `target_ids`."""
    base_logprobs: list[float]
    """The same with the adapter switched off."""


class AdapterManifest(Message):
    """Written last: files listed here are complete. Its own sha256 is the digest of the adapter version."""

    format: Literal["stillhouse.adapter.v1"] = "stillhouse.adapter.v1"
    run: str
    """Id of the training run, or empty for a run of the command line."""
    files: list[ManifestFile] = Field(min_length=1)
    base: BaseReference
    template_sha256: Sha256
    think: ThinkContract
    spec: TrainSpec
    data_sha256: Sha256
    result: TrainResult
    golden: list[GoldenSample]
    versions: dict[str, str]
    """Package versions that made it."""
