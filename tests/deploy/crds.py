"""KubeRay's own word on its objects: the CRDs' schemas made strict, and their CEL rules.

An API server drops fields that it does not know without a word; here each is a problem. Rules that compare with an
older object (``oldSelf``) say nothing of a new one and are left out. The CRDs lie beside the repository, not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import pytest
import yaml
from celpy.adapter import json_to_cel
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

FOLDER = Path(__file__).parents[3] / "shared" / "kuberay"
FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}
needs_crds = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"KubeRay's CRDs are not in {FOLDER}")

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
        "namespace": {"type": "string"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
}
"""What a CRD leaves to the API server: as far as we use it, and KubeRay's limit for a RayJob's name."""


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """The ``v1`` schema of ``kind``, as its CRD says it."""
    crd = yaml.load((FOLDER / FILES[kind]).read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
    whole: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return whole | {
        "properties": whole["properties"] | {"metadata": METADATA},
        "required": ["kind", "spec", "metadata"],
    }


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema of Kubernetes as JSON Schema that refuses what an API server would drop."""
    plain = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if "properties" in schema:
        plain["properties"] = {name: strict(below) for name, below in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            plain[key] = strict(schema[key])
    if schema.get("x-kubernetes-int-or-string"):
        plain.pop("anyOf", None)
        plain["type"] = ["integer", "string"]
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        plain.setdefault("additionalProperties", False)
    if schema.get("format") == "int32":
        plain.setdefault("minimum", -(2**31))
        plain.setdefault("maximum", 2**31 - 1)
    if plain.pop("nullable", False):
        plain["type"] = [plain["type"], "null"]
    return plain


@cache
def _validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(strict(schema_of(kind)))


@cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def values_below(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any], Any]]:
    """``value`` and everything in it, each with the part of the schema that speaks of it."""
    yield path, schema, value
    if isinstance(value, dict):
        for key, item in value.items():
            below = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(below, dict):
                yield from values_below(below, item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from values_below(schema.get("items", {}), item, f"{path}[{index}]")


def problems(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay's schema and rules have against a manifest, each with the path where it stands."""
    kind = manifest["kind"]
    found = [f"{error.json_path}: {error.message}" for error in _validator(kind).iter_errors(manifest)]
    for path, schema, value in values_below(schema_of(kind), manifest):
        for rule in schema.get("x-kubernetes-validations", []):
            if "oldSelf" not in rule["rule"] and not _program(rule["rule"]).evaluate({"self": json_to_cel(value)}):
                found.append(f"${path}: {rule['message']}")
    return found


def num_rules(kind: str, manifest: dict[str, Any]) -> int:
    """How many rules were tried on a manifest."""
    everything = values_below(schema_of(kind), manifest)
    rules = [rule for _, schema, _ in everything for rule in schema.get("x-kubernetes-validations", [])]
    return len([rule for rule in rules if "oldSelf" not in rule["rule"]])
