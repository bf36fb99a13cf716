"""What platform and workers say to each other: pydantic messages and nothing else.

The messages are versioned by `CONTRACT_VERSION` and change by addition only. Unknown fields are refused, so
that a misspelt setting is an error and never a silent default.
"""

from workers.contract.base import CONTRACT_VERSION, Message, Sha256
from workers.contract.data import Problem, SplitSpec, ValidateSpec, ValidationReport
from workers.contract.evaluation import (
    EvaluateSpec,
    EvaluationRow,
    EvaluationSummary,
    Grade,
    Grader,
    SideSummary,
)
from workers.contract.jobs import (
    ClaimAnswer,
    ClaimRequest,
    FinishRequest,
    InputFile,
    JobFailure,
    JobKind,
    MetricPoint,
    OutputFile,
    Refusal,
    ReportAnswer,
    ReportRequest,
    UploadGrant,
    UploadsAnswer,
    UploadsRequest,
)
from workers.contract.manifest import AdapterManifest, BaseReference, GoldenSample, ManifestFile
from workers.contract.serving import (
    HeldVersion,
    PoolReport,
    PoolWanted,
    ServingProof,
    WantedFile,
    WantedVersion,
)
from workers.contract.training import ThinkContract, ThinkPolicy, TrainProgress, TrainResult, TrainSpec

__all__ = [
    "CONTRACT_VERSION",
    "AdapterManifest",
    "BaseReference",
    "ClaimAnswer",
    "ClaimRequest",
    "EvaluateSpec",
    "EvaluationRow",
    "EvaluationSummary",
    "FinishRequest",
    "GoldenSample",
    "Grade",
    "Grader",
    "HeldVersion",
    "InputFile",
    "JobFailure",
    "JobKind",
    "ManifestFile",
    "Message",
    "MetricPoint",
    "OutputFile",
    "PoolReport",
    "PoolWanted",
    "Problem",
    "Refusal",
    "ReportAnswer",
    "ReportRequest",
    "ServingProof",
    "Sha256",
    "SideSummary",
    "SplitSpec",
    "ThinkContract",
    "ThinkPolicy",
    "TrainProgress",
    "TrainResult",
    "TrainSpec",
    "UploadGrant",
    "UploadsAnswer",
    "UploadsRequest",
    "ValidateSpec",
    "ValidationReport",
    "WantedFile",
    "WantedVersion",
]
