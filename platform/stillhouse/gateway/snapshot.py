"""What the gateway knows: keys, aliases, versions, bases and replicas, as they stood at one moment in
Postgres.

The tables belong to the models of `accounts`, `usage`, `publishing`, `adapters`, `training`, `datasets`,
`serving` and `catalog`.
They are read by SQL, in one transaction, so that an alias never points at a version that this snapshot does
not have.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

from stillhouse.accounts.keys import APP_SCOPES
from workers.contract import Calibration, ThinkContract

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    workspace_id: str
    scopes: frozenset[str] = frozenset(APP_SCOPES)
    expires: float | None = None
    """Seconds since the epoch."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    monthly_tokens: int | None = None
    local_only: bool = False
    """Its requests never leave the site."""
    tokens_this_month: int = 0
    """By the ledger; counted only where there is a budget."""


@dataclass(frozen=True, slots=True)
class Replica:
    id: int
    url: str
    """Base URL of the engine, without /v1."""
    stale: bool = False
    """Its agent has not reported for a while: taken only when no other replica is left."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base that has a pool."""

    id: str
    think: ThinkContract
    replicas: tuple[Replica, ...]
    """Healthy ones."""
    created: int
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Version:
    id: str
    workspace_id: str
    name: str
    """Immutable serving name."""
    state: str
    base: Base
    replicas: tuple[Replica, ...]
    """Healthy ones whose agent reports this version ready."""
    failed: bool
    """A replica tried to load it and could not, and none has it ready."""
    loading: bool
    """A healthy replica is loading it, and none has it ready."""
    created: int
    calibration: Calibration | None = None
    """From how sure it is of an answer to how likely that is right."""
    reasons: bool = True
    """It was trained to reason: more rows than not showed it, and their reasoning was shown to it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A share of an alias's requests."""

    version: Version
    percent: int


@dataclass(frozen=True, slots=True)
class Escalation:
    """A larger model elsewhere, and the terms on which it may be asked."""

    url: str
    """Base URL, with its /v1."""
    model: str
    credential: str
    """Sealed."""
    prompt_price: int
    completion_price: int
    """Of a token, in billionths of the currency's unit."""
    reasons: Collection[str]
    threshold: float = 0.0
    """Of the reason `confidence`."""


@dataclass(frozen=True, slots=True)
class Published:
    """What an alias answers with now."""

    version: Version
    created: int
    by_request: bool = False
    """The canary's share is drawn for each request; else the same user or key always has the same."""
    canary: Part | None = None
    shadow: Part | None = None
    escalation: Escalation | None = None
    keep_days: int = 0
    """How long prompts and answers are kept; 0: not at all."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    keys: Mapping[str, Key] = field(default_factory=dict)
    """HMAC of the secret -> key. Revoked keys are not in it."""
    workspaces: Mapping[str, str] = field(default_factory=dict)
    """Id -> slug."""
    aliases: Mapping[tuple[str, str], Published] = field(default_factory=dict)
    """(workspace id, alias) -> what answers."""
    versions: Mapping[str, Version] = field(default_factory=dict)
    """Serving name -> version."""
    bases: Mapping[str, Base] = field(default_factory=dict)
    """Catalog id -> base."""


_STALE_SECONDS = 15  # as in serving.queries.SILENCE

_KEYS = """
    SELECT key.digest, key.id, key.workspace_id, key.scopes, extract(epoch FROM key.expires_at)::float8,
           key.requests_per_minute, key.tokens_per_minute, key.monthly_tokens, key.local_only, month.tokens
    FROM accounts_apikey AS key
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(hour.prompt_tokens + hour.completion_tokens), 0)::bigint AS tokens
        FROM usage_usagehour AS hour
        WHERE key.monthly_tokens IS NOT NULL AND hour.caller = key.id AND NOT hour.shadow
              AND hour.hour >= date_trunc('month', now(), 'UTC')) AS month
    WHERE key.revoked_at IS NULL"""
_WORKSPACES = "SELECT id, slug FROM accounts_workspace"
_REPLICAS = f"""
    SELECT replica.id, replica.url, replica.reported_at < now() - interval '{_STALE_SECONDS} seconds',
           pool.base_id
    FROM serving_replica AS replica JOIN serving_pool AS pool ON pool.name = replica.pool_id
    WHERE replica.healthy AND replica.draining = ''"""
_HOLDINGS = "SELECT version_id, replica_id, state FROM serving_holding"
_BASES = """
    SELECT base.id, base.think, extract(epoch FROM min(pool.created_at))::bigint
    FROM catalog_basemodel AS base JOIN serving_pool AS pool ON pool.base_id = base.id GROUP BY base.id"""
_VERSIONS = """
    SELECT version.id, adapter.workspace_id, version.serving_name, version.state, run.base_id,
           extract(epoch FROM version.created_at)::bigint,
           (SELECT coalesce(result.confidence, result.calibration)
            FROM evaluations_evaluationresult AS result
            JOIN evaluations_evaluation AS evaluation ON evaluation.id = result.evaluation_id
            WHERE evaluation.version_id = version.id ORDER BY result.created_at DESC LIMIT 1),
           run.spec_body->>'think_policy' IS DISTINCT FROM 'no_think'
               AND coalesce(2 * (report.body->>'with_reasoning')::bigint >= report.valid, true)
    FROM adapters_adapterversion AS version
    JOIN adapters_adapter AS adapter ON adapter.id = version.adapter_id
    JOIN training_trainingrun AS run ON run.id = version.run_id
    LEFT JOIN datasets_datasetreport AS report ON report.version_id = run.data_id"""
_ALIASES = """
    SELECT DISTINCT ON (alias.id) alias.workspace_id, alias.name, publication.version_id,
           extract(epoch FROM publication.created_at)::bigint, publication.spread = 'request',
           coalesce(keeping.days, 0), publication.id
    FROM publishing_alias AS alias
    JOIN publishing_publication AS publication ON publication.alias_id = alias.id
    LEFT JOIN publishing_keeping AS keeping ON keeping.alias_id = alias.id
    ORDER BY alias.id, publication.sequence DESC"""
_SHARES = """
    SELECT publication_id, version_id, percent, shadow FROM publishing_share
    WHERE publication_id = ANY(%s)"""
_ESCALATIONS = """
    SELECT alias.workspace_id, alias.name, escalation.url, escalation.model, escalation.credential,
           escalation.prompt_price, escalation.completion_price, escalation.reasons, escalation.threshold
    FROM publishing_escalation AS escalation
    JOIN publishing_alias AS alias ON alias.id = escalation.alias_id
    WHERE escalation.enabled"""


async def read_snapshot(connection: Connection) -> Snapshot:
    """One consistent full read. Raises psycopg.Error when Postgres cannot answer."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        keys = await _rows(connection, _KEYS)
        workspaces = await _rows(connection, _WORKSPACES)
        replicas = await _rows(connection, _REPLICAS)
        holdings = await _rows(connection, _HOLDINGS)
        bases = await _rows(connection, _BASES)
        versions = await _rows(connection, _VERSIONS)
        aliases = await _rows(connection, _ALIASES)
        escalations = await _rows(connection, _ESCALATIONS)
        shares = await _rows(connection, _SHARES, [publication_id for *_, publication_id in aliases])
    bases_by_id = _make_bases(bases, replicas)
    versions_by_id = _make_versions(versions, bases_by_id, replicas, holdings)
    return Snapshot(
        keys={
            digest: Key(key_id, workspace_id, frozenset(scopes), *terms)
            for digest, key_id, workspace_id, scopes, *terms in keys
        },
        workspaces=dict(workspaces),
        aliases=_make_aliases(aliases, shares, escalations, versions_by_id),
        versions={version.name: version for version in versions_by_id.values()},
        bases=bases_by_id,
    )


async def _rows(connection: Connection, query: str, *parameters: object) -> list[Any]:
    cursor = await connection.execute(query, parameters or None)
    return await cursor.fetchall()


def _make_aliases(
    aliases: list[Any], shares: list[Any], escalations: list[Any], versions: Mapping[str, Version]
) -> dict[tuple[str, str], Published]:
    elsewhere = {(workspace_id, name): Escalation(*terms) for workspace_id, name, *terms in escalations}
    parts = {
        (publication_id, shadow): Part(versions[version_id], percent)
        for publication_id, version_id, percent, shadow in shares
        if version_id in versions
    }
    return {
        (workspace_id, name): Published(
            version=versions[version_id],
            created=created,
            by_request=by_request,
            keep_days=keep_days,
            canary=parts.get((publication_id, False)),
            shadow=parts.get((publication_id, True)),
            escalation=elsewhere.get((workspace_id, name)),
        )
        for workspace_id, name, version_id, created, by_request, keep_days, publication_id in aliases
        if version_id in versions
    }


def _make_bases(bases: list[Any], replicas: list[Any]) -> dict[str, Base]:
    by_base: dict[str, list[Replica]] = defaultdict(list)
    for replica_id, url, stale, base_id in replicas:
        by_base[base_id].append(Replica(replica_id, url, stale))
    return {
        base_id: Base(base_id, ThinkContract.model_validate(think), tuple(by_base[base_id]), created)
        for base_id, think, created in bases
    }


def _make_versions(
    versions: list[Any], bases: Mapping[str, Base], replicas: list[Any], holdings: list[Any]
) -> dict[str, Version]:
    """Versions by id. One whose base has no pool is left out: there is nowhere it could be served."""
    healthy = {replica_id: Replica(replica_id, url, stale) for replica_id, url, stale, _ in replicas}
    ready: dict[str, list[Replica]] = defaultdict(list)
    failed, loading = set(), set()
    for version_id, replica_id, state in holdings:
        if state == "failed":
            failed.add(version_id)
        elif replica_id in healthy and state == "ready":
            ready[version_id].append(healthy[replica_id])
        elif replica_id in healthy:
            loading.add(version_id)
    return {
        version_id: Version(
            id=version_id,
            workspace_id=workspace_id,
            name=name,
            state=state,
            base=bases[base_id],
            replicas=tuple(ready.get(version_id, ())),
            failed=version_id in failed and version_id not in ready,
            loading=version_id in loading and version_id not in ready,
            created=created,
            calibration=Calibration.model_validate(calibration) if calibration else None,
            reasons=reasons,
        )
        for version_id, workspace_id, name, state, base_id, created, calibration, reasons in versions
        if base_id in bases
    }
