"""The OpenAPI schema is valid OpenAPI, and answers that it does not declare are found.

The fixture `client` holds every answer of the tests in this folder to the schema.
"""

import pytest
from jsonschema import ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.testclient import TestClient

from tests.service.openapi_answers import AnswerCheck

MEDIA_TYPES = (
    {"application/json"},
    {"application/jsonl"},
    {"text/plain"},
    {"application/json", "text/event-stream"},
    {"image/png", "image/webp", "image/jpeg"},
)


def test_the_schema_is_valid_openapi(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(schema).validate()


def test_every_route_declares_what_it_answers(client: TestClient) -> None:
    """JSON or text, or one of the images; nothing only where nothing is sent."""
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for operation in operations.values():
            # FastAPI's own 422 has another object; ours for invalid requests are 400
            assert "HTTPValidationError" not in str(operation["responses"].get("422")), path
            for status, answer in operation["responses"].items():
                content = answer.get("content", {})
                assert content.keys() in MEDIA_TYPES or (status, *content) == ("304",), path
                assert all(media["schema"] for media in content.values()), path


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (JSONResponse({"alive": "yes"}), ValidationError),
        (JSONResponse({"alive": True}, 418), AssertionError),
        (PlainTextResponse("alive"), AssertionError),
    ],
    ids=["value", "status", "media type"],
)
def test_an_answer_that_is_not_declared_is_found(
    client: TestClient, answer: Response, error: type[Exception]
) -> None:
    schema = client.get("/openapi.json").json()
    other = TestClient(answer)
    other.event_hooks["response"].append(AnswerCheck(schema))
    with pytest.raises(error):
        other.get("/livez")
    other.close()
