"""schemathesis: what the OpenAPI document says is what the server does."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from app.errors import CATALOGUE
from app.schemas import problems
from tests.server.conftest import Running


def test_every_answer_is_in_the_document(server: Running) -> None:
    """Valid and hostile requests to every operation: status, headers and body as documented."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checked = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        def conforms(case: "schemathesis.Case[Any]") -> None:
            # That bytes are no image is not for a schema to say.
            case.call_and_validate(base_url=server.url, excluded_checks=[positive_data_acceptance])

        conforms()
        checked.append(operation.label)
    assert "POST /detect" in checked
    assert "POST /detect/batch" in checked
    assert len(checked) >= 6
    assert server.service.alive
    assert server.service.places.taken == 0


def test_a_route_documents_the_errors_that_the_catalogue_gives_it(server: Running) -> None:
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert {route for row in CATALOGUE.values() for route in row.routes} == set(paths)
    for path, operations in paths.items():
        for operation in operations.values():
            documented = {
                int(status): answer["description"]
                for status, answer in operation["responses"].items()
                if int(status) >= 400
            }
            assert documented == {
                status: answer["description"] for status, answer in problems(path).items()
            }
