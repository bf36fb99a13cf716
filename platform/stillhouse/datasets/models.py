"""Datasets: a name, its immutable versions, and how bytes get there."""

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models

from stillhouse.accounts.models import User, Workspace
from stillhouse.core.ids import IdField
from stillhouse.jobs.models import Job


class Dataset(models.Model):
    """A name that versions hang on."""

    id = IdField("ds")
    workspace = models.ForeignKey(Workspace, models.PROTECT, related_name="datasets")
    name = models.CharField(max_length=120)
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["workspace", "name"], name="dataset_name_unique_in_workspace")
        ]

    def __str__(self) -> str:
        return self.name


class Upload(models.Model):
    """A multipart upload under way, from the browser straight to object storage."""

    id = IdField("up")
    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="uploads")
    filename = models.CharField(max_length=200)
    size = models.PositiveBigIntegerField()
    part_size = models.PositiveIntegerField()
    storage_upload_id = models.TextField()
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True)

    @property
    def staging_key(self) -> str:
        return f"staging/uploads/{self.id}"

    @property
    def part_count(self) -> int:
        """How many parts the file is sent in, numbered from 1."""
        return -(-self.size // self.part_size)

    def bytes_of_part(self, number: int) -> int | None:
        """How many bytes part `number` must have; None when there is no such part."""
        if not 1 <= number <= self.part_count:
            return None
        return min(self.part_size, self.size - (number - 1) * self.part_size)


class DatasetVersion(models.Model):
    """Immutable content. Its check's state is its Job's; what the check found is a DatasetReport."""

    id = IdField("dv")
    dataset = models.ForeignKey(Dataset, models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    filename = models.CharField(max_length=200)
    sha256 = models.CharField(max_length=64, blank=True)
    """Of the original. Empty while a large file is not hashed yet: its check does that."""
    size = models.PositiveBigIntegerField()
    mapping = models.JSONField(null=True)
    """A Mapping, where a person said how to read the file; None: recognised by looking."""
    rows_sha256 = models.CharField(max_length=64, blank=True, default="")
    """The good rows, normalised by the check. Empty where the original is read as it is."""
    rows_size = models.PositiveBigIntegerField(default=0)
    upload = models.OneToOneField(Upload, models.PROTECT, null=True, related_name="version")
    operations = models.JSONField(null=True)
    """What made it out of its sources, one Operation after the other; None: it was uploaded."""
    why = models.CharField(max_length=300, blank=True, default="", db_default="")
    """What the person who made it wanted with it."""
    job = models.OneToOneField(Job, models.PROTECT, related_name="+")
    """The `validate` job; for a version made from others, the `derive` job."""
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    erased_at = models.DateTimeField(null=True)
    """It holds rows that somebody had erased: nothing may be made from it any more."""
    purged_at = models.DateTimeField(null=True)
    """Its files are gone from the store; digests and figures stay."""

    class Meta:
        ordering: ClassVar = ["dataset", "number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["dataset", "number"], name="dataset_version_number_unique")
        ]

    def __str__(self) -> str:
        return f"{self.dataset.name} v{self.number}"

    @property
    def trained_sha256(self) -> str:
        """Digest of the file that runs and evaluations read."""
        return self.rows_sha256 or self.sha256

    @property
    def trained_size(self) -> int:
        return self.rows_size if self.rows_sha256 else self.size


class VersionSource(models.Model):
    """A version that another one was made from; at position 0 the one that was changed."""

    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="sources")
    parent = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="uses")
    position = models.PositiveSmallIntegerField()

    class Meta:
        ordering: ClassVar = ["version", "position"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["version", "position"], name="version_source_position_unique")
        ]

    def __str__(self) -> str:
        return f"{self.version} from {self.parent}"


class Trial(models.Model):
    """What operations would do to a version: a dry run of a `derive` job, which writes no rows."""

    id = IdField("tr")
    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="trials")
    original = models.BooleanField()
    """The file as it was uploaded is read, rows in error included; else the version's rows."""
    job = models.OneToOneField(Job, models.PROTECT, related_name="+")
    body = models.JSONField(null=True)
    """A DeriveResult; None until the job has ended well."""
    created_at = models.DateTimeField(auto_now_add=True)


class Comparison(models.Model):
    """What differs between two versions: a CompareResult, computed once."""

    id = IdField("cmp")
    before = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="+")
    after = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="+")
    job = models.OneToOneField(Job, models.PROTECT, related_name="+")
    """The `compare` job."""
    body = models.JSONField(null=True)
    """None until the job has ended well."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["before", "after"], name="versions_compared_once")
        ]

    def __str__(self) -> str:
        return f"{self.before} beside {self.after}"


class DatasetReport(models.Model):
    """What the check of a version found: a ValidationReport; with `derivation` where it was derived."""

    version = models.OneToOneField(DatasetVersion, models.CASCADE, primary_key=True, related_name="report")
    rows = models.PositiveBigIntegerField()
    valid = models.PositiveBigIntegerField()
    error_count = models.PositiveBigIntegerField()
    warning_count = models.PositiveBigIntegerField()
    body = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)


class Tag(models.Model):
    """A word that somebody hung on a version, to find it again."""

    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="tags")
    name = models.CharField(max_length=40)
    """As `notes.clean_tag` leaves it."""
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["version", "name"], name="version_tagged_once")
        ]
        indexes: ClassVar = [models.Index(fields=["name"], name="tag_name")]

    def __str__(self) -> str:
        return self.name


class Comment(models.Model):
    """What somebody said about a row of a version."""

    SOURCE_CHARACTERS: ClassVar = 400

    id = IdField("cm")
    version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="comments")
    row = models.PositiveBigIntegerField()
    """Its number in its source, from 1."""
    source = models.CharField(max_length=SOURCE_CHARACTERS, blank=True)
    """The file inside an archive, or the sheet."""
    text = models.TextField()
    """Plain text; as trustworthy as any other that a person types."""
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["version", "row"], name="comment_row")]


class TrafficSource(models.Model):
    """Where an upload's rows come from when no person sent a file: exchanges that an alias answered.

    It hangs on the upload, so that it is there before the version is.
    """

    upload = models.OneToOneField(Upload, models.CASCADE, primary_key=True, related_name="traffic")
    alias = models.CharField(max_length=60)
    """Its name at that time."""
    requests = ArrayField(models.CharField(max_length=40))
    """Ids of the exchanges, in the order of the rows."""
    corrected = models.PositiveIntegerField()
    """How many of them do not say what the model answered."""
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()

    @property
    def count(self) -> int:
        return len(self.requests)
