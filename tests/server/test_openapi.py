"""`/openapi.json` is true: generated requests get only the statuses, types and shapes that it names, never a 5xx."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from loopback import MODEL
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi import checks

# Everything but what changes the server for the requests after it.
OPERATIONS = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/clear_cache": "POST",
    "/v1/models": "GET",
    "/v1/models/{name}": "GET",
    "/health": "GET",
    "/metrics": "GET",
}
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
EXAMPLES = 40


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", OPERATIONS)
def test_generated_requests_get_what_the_description_says(serving, path, mode):
    server = serving()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operation = schema[path][OPERATIONS[path]]

    @seed(0)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(mode))
    def send(case):
        case.validate_response(case.call(base_url=server.url), checks=CHECKS)

    try:
        send()
    except Unsatisfiable:
        assert not operation.body, "a request with a body can always be wrong"


def test_requests_that_change_the_server_are_in_the_description_too(serving, tmp_path):
    server = serving()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    bodies = {
        "/pause": {"mode": "abort"},
        "/update_weights": {"path": str(tmp_path)},
        "/update_weights_from_disk": {"model_path": str(tmp_path / "nothing")},
        "/resume": None,
    }
    for path, body in bodies.items():
        case = schema[path]["POST"].Case(**({"body": body, "media_type": "application/json"} if body else {}))
        case.validate_response(case.call(base_url=server.url), checks=CHECKS)
    described = set(schema.raw_schema["paths"])
    assert described == set(OPERATIONS) | set(bodies)


def test_the_description_names_the_errors_and_not_fastapis_own(serving):
    description = serving().http().get("/openapi.json").json()
    assert not {"HTTPValidationError", "ValidationError"} & set(description["components"]["schemas"])
    for path, operations in description["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
    chat = description["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= set(chat)
    assert set(chat["200"]["content"]) == {"application/json", "text/event-stream"}
    for status, answer in chat.items():
        if status != "200":
            assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")


def test_models_are_listed_and_found_by_name(serving):
    client = serving().openai()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "baleen"
    with pytest.raises(Exception, match="does not exist"):
        client.models.retrieve("other")


def test_the_page_is_served_or_said_to_be_missing(serving):
    answer = serving().http().get("/")
    assert answer.status_code in (200, 404)
    assert isinstance(answer, httpx.Response)
    assert answer.headers["content-type"].startswith("text/html" if answer.status_code == 200 else "text/plain")
