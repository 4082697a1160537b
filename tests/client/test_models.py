"""The dataclasses are what the OpenAPI document says, field by field."""

import dataclasses
import inspect
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from app import oip
from app.main import create_app
from app.settings import Settings
from nsnet_client import models

SCHEMAS: dict[str, dict[str, Any]] = create_app(Settings()).openapi()["components"]["schemas"]

# Read by the clients, or of no use to them; and what other clients speak.
UNSEEN = {"BatchOut", "Status", "Summary"} | {
    name for name, _ in inspect.getmembers(oip, inspect.isclass)
}
# The document has the fields of a common part in each schema that has them.
PARTS = {"Source"}

DATACLASSES = {
    name: kind
    for name, kind in inspect.getmembers(models, dataclasses.is_dataclass)
    if isinstance(kind, type)
}


def name_of(schema: str) -> str:
    return schema.removesuffix("Out")


def documented(schema: dict[str, Any]) -> Any:
    """A schema as a comparable value: a type's name, or a word and what belongs to it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        target = SCHEMAS[name]
        return ("one of", *sorted(target["enum"])) if "enum" in target else name_of(name)
    if "anyOf" in schema:
        parts = [documented(one) for one in schema["anyOf"]]
        assert parts[-1:] == ["null"]
        [inner] = parts[:-1]
        return ("or null", inner)
    if "enum" in schema or "const" in schema:
        return ("one of", *sorted(schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return ("list", documented(schema["items"]))
    if schema.get("type") == "object":
        inner = schema["additionalProperties"]
        return ("mapping", "any" if inner is True else documented(inner))
    return schema["type"]


def declared(kind: Any) -> Any:
    """A type as `documented` gives it."""
    arguments = get_args(kind)
    match get_origin(kind):
        case None:
            plain = {str: "string", int: "integer", float: "number", bool: "boolean", Any: "any"}
            return plain.get(kind, kind.__name__ if isinstance(kind, type) else None)
        case origin if origin is Literal:
            return ("one of", *sorted(arguments))
        case origin if origin in (Union, types.UnionType):
            [inner] = [one for one in arguments if one is not types.NoneType]
            return ("or null", declared(inner))
        case origin if origin is tuple:
            assert arguments[1] is Ellipsis
            return ("list", declared(arguments[0]))
        case origin if origin is Mapping:
            return ("mapping", declared(arguments[1]))
    raise AssertionError(kind)


def test_there_is_a_dataclass_for_every_answer_and_no_other() -> None:
    schemas = {name for name, schema in SCHEMAS.items() if schema["type"] == "object"}
    assert set(DATACLASSES) - PARTS == {name_of(name) for name in schemas - UNSEEN}


@pytest.mark.parametrize("schema", sorted(set(SCHEMAS) - UNSEEN))
def test_a_dataclass_has_the_fields_of_its_schema(schema: str) -> None:
    document = SCHEMAS[schema]
    if "enum" in document:
        return  # compared where it is used
    kind = DATACLASSES[name_of(schema)]
    assert declared_fields(kind) == {
        name: documented(one) for name, one in document["properties"].items()
    }
    required = {
        field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING
    }
    assert required == set(document["required"])
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def declared_fields(kind: type) -> dict[str, Any]:
    return {name: declared(one) for name, one in get_type_hints(kind).items()}
