"""A worker refuses a specification with a field it does not know: such a field takes a new version."""

import hashlib
import json

from workers.contract import (
    CONTRACT_VERSION,
    CompareSpec,
    DeriveSpec,
    EvaluateSpec,
    PreviewSpec,
    TrainSpec,
    ValidateSpec,
)

SPECS = (CompareSpec, DeriveSpec, EvaluateSpec, PreviewSpec, TrainSpec, ValidateSpec)
DIGESTS = {3: "b7fd9a14c2b31ba4", 4: "7e0d5f692ffbe680"}
"""Of every field name in the specifications, by contract version. Add a line when a test fails here."""


def names(schema: object) -> list[str]:
    """Every property name, at any depth, with the message it belongs to."""
    found = []
    if isinstance(schema, dict):
        found += [f"{schema.get('title', '')}.{name}" for name in schema.get("properties", {})]
        for value in schema.values():
            found += names(value)
    elif isinstance(schema, list):
        for value in schema:
            found += names(value)
    return found


def test_the_fields_of_specifications_are_those_of_this_contract_version() -> None:
    listed = sorted({name for spec in SPECS for name in names(spec.model_json_schema())})
    assert "TrainSpec.devices" in listed
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
    assert DIGESTS[CONTRACT_VERSION] == digest
