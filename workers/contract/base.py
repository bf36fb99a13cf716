"""The base of every message, and the field types they share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

CONTRACT_VERSION = 4

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 digest as 64 lower-case hexadecimal characters."""

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,120}$")]
"""A plain file name: no folder, no leading dot, nothing that could leave the folder it is written to."""


class Message(BaseModel):
    """A frozen message that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(Message):
    """What the platform answers. A field that a newer platform has added is ignored, so that a worker of the
    version before goes on while the site is upgraded."""

    model_config = ConfigDict(extra="ignore")
