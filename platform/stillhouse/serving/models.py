"""Where adapter versions should be loaded, and what the engines say they hold."""

from typing import ClassVar

from django.db import models

from stillhouse.adapters.models import AdapterVersion
from stillhouse.catalog.models import BaseModel


class Pool(models.Model):
    """Replicas of one base with one engine configuration."""

    name = models.SlugField(primary_key=True, max_length=60)
    base = models.ForeignKey(BaseModel, models.PROTECT, related_name="pools")
    use_noted_at = models.DateTimeField(null=True)
    """When `Placement.used_at` was last brought up to date."""
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class Replica(models.Model):
    """One engine and its agent, as it last reported."""

    pool = models.ForeignKey(Pool, models.CASCADE, related_name="replicas")
    name = models.CharField(max_length=120)
    url = models.URLField()
    incarnation = models.CharField(max_length=80)
    engine = models.CharField(max_length=80, blank=True)
    healthy = models.BooleanField(default=False)
    error = models.CharField(max_length=300, blank=True)
    """Why requests may not go there although the engine runs: another base's weights, say."""
    trouble = models.CharField(max_length=300, blank=True)
    """What the agent itself cannot do, in its words."""
    capacity = models.PositiveIntegerField(default=0)
    """Versions its engine keeps in memory; 0 when the agent did not say."""
    draining = models.CharField(max_length=10, blank=True, default="")
    """Who wants no new requests there: "" nobody, `operator`, or `agent` when it is about to stop."""
    reported_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["pool", "name"], name="replica_name_unique_in_pool")
        ]


class Placement(models.Model):
    """A version that belongs on a pool. Which of them are loaded now follows from pins and recent use."""

    pool = models.ForeignKey(Pool, models.CASCADE, related_name="placements")
    version = models.ForeignKey(AdapterVersion, models.PROTECT, related_name="placements")
    pinned = models.BooleanField(default=False)
    """Always loaded, because a person said so."""
    used_at = models.DateTimeField(null=True)
    """Last answered a request, to the hour."""
    wanted_at = models.DateTimeField(null=True)
    """Last asked for while it was not loaded."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["pool", "version"], name="one_placement_per_pool")
        ]


class Holding(models.Model):
    """One version on one replica, as its agent reports it."""

    LOADING, READY, FAILED = "loading", "ready", "failed"

    replica = models.ForeignKey(Replica, models.CASCADE, related_name="holdings")
    version = models.ForeignKey(AdapterVersion, models.CASCADE, related_name="holdings")
    state = models.CharField(max_length=10)
    error = models.CharField(max_length=1000, blank=True)
    proof = models.JSONField(null=True)
    """ServingProof, once measured."""
    load_ms = models.FloatField(null=True)
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["replica", "version"], name="one_holding_per_replica")
        ]
