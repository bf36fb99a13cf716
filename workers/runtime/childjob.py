"""The two files between the worker and its child: job.json in, result.json out."""

from workers.contract import JobKind, Message


class ChildJob(Message):
    """job.json: everything the child needs. Paths are absolute."""

    kind: JobKind
    spec: dict[str, object]
    inputs: dict[str, str]
    """Input name -> path."""
    base: str
    """Folder of the base's weights; empty unless it trains."""
    out: str
    """Folder for what the job makes; checkpoints of an earlier attempt may be in it."""
    subject: str
    """Id of what the job is for; goes into the manifest."""
    resume: bool
    """An earlier attempt left checkpoints in `out`."""


class ChildResult(Message):
    """result.json"""

    result: dict[str, object]
    """What the kind ends with, such as ValidationReport or TrainResult, as JSON."""
