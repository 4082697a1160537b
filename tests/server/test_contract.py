"""schemathesis: what the OpenAPI document says is what the server does."""

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.server.conftest import Running


def test_every_answer_is_in_the_document(server: Running) -> None:
    """Valid and hostile requests to every operation: status, headers and body as documented."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checked = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
        def conforms(case: schemathesis.Case) -> None:
            # That bytes are no image is not for a schema to say.
            case.call_and_validate(base_url=server.url, excluded_checks=[positive_data_acceptance])

        conforms()
        checked.append(operation.label)
    assert "POST /detect" in checked
    assert "POST /detect/batch" in checked
    assert len(checked) >= 6
    assert server.service.alive
    assert server.service.admission.taken == 0
