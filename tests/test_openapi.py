"""The contract as committed, and its examples; `python -m tests.test_openapi` writes it anew."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from app.examples import DETAILS
from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "openapi.json"


def document() -> dict[str, Any]:
    """What a server says of itself that has keys, so that the document tells how they are sent."""
    settings = Settings.model_validate({"api_keys": "of-no-server-at-all"})
    return create_app(settings).openapi()


def written(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


CONTRACT = document()


def test_the_contract_is_the_committed_one() -> None:
    committed = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    assert committed == written(CONTRACT), "if that is meant: make openapi, and commit it"


def answers() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Operation, status, media type and what is said of it, of everything documented."""
    for path, operations in CONTRACT["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                for kind, content in answer.get("content", {"": {}}).items():
                    yield f"{method} {path}", status, kind, content


def examples(content: dict[str, Any]) -> list[Any]:
    return [example["value"] for example in content.get("examples", {}).values()]


@pytest.mark.parametrize(
    ("operation", "status", "kind", "content"),
    [pytest.param(*one, id=" ".join(one[:3])) for one in answers()],
)
def test_every_answer_has_an_example_by_its_schema(
    operation: str, status: str, kind: str, content: dict[str, Any]
) -> None:
    shown = examples(content)
    assert shown
    for example in shown:
        jsonschema_rs.validate({**content["schema"], "components": CONTRACT["components"]}, example)
        if kind == "application/problem+json":
            assert example["status"] == int(status)
    if kind == "application/x-ndjson":
        *items, last = map(json.loads, shown[0].splitlines())
        whole = {**last, "results": items}
        schema = {"$ref": "#/components/schemas/BatchOut", "components": CONTRACT["components"]}
        jsonschema_rs.validate(schema, whole)


def test_an_error_has_an_example_for_each_of_its_codes() -> None:
    for operation, status, kind, content in answers():
        if kind == "application/problem+json":
            codes = [example["code"] for example in examples(content)]
            responses = CONTRACT["paths"][operation.split()[1]][operation.split()[0]]["responses"]
            assert ", ".join(codes) == responses[status]["description"]


def told() -> Iterator[str]:
    """Every text of the sources, as a pattern in which what is filled in may be anything."""
    for package in ("app", "model"):
        for file in (ROOT / package).rglob("*.py"):
            if file == ROOT / "app" / "examples.py":
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.escape(node.value)
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(
                        re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+"
                        for part in node.values
                    )


def test_details_are_what_is_really_told() -> None:
    patterns = {pattern for pattern in told() if " " in pattern}
    for code, detail in DETAILS.items():
        assert any(re.fullmatch(pattern, detail) for pattern in patterns), code


if __name__ == "__main__":
    DOCUMENT.write_text(written(CONTRACT))
