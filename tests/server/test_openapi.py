"""What the OpenAPI page says holds for whatever a client makes up."""

from hypothesis import HealthCheck, given, settings


def test_answers_are_as_documented(server):
    # Imported here: it takes over a second, and every process of a run imports every test.
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=12, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def check(case):
            case.call_and_validate(checks=checks)

        check()
        tried.add(operation.path)
    assert {"/v1/embeddings", "/embed", "/rerank", "/m3/encode", "/similarity", "/tokenize", "/ready"} <= tried
