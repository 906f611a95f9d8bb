"""Holds the gateway's answers to its own OpenAPI schema: status, media type and JSON."""

from typing import Any

import httpx2
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from safelight.service.http.schemas import ErrorResponse


class AnswerCheck:
    """Checks each answer against what the schema declares for its route; a hook of an HTTP client.

    Answers to routes and methods that do not exist must be OpenAI's error object.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema

    def __call__(self, response: httpx2.Response) -> None:
        response.read()
        operation = self._operation(response.request.method.lower(), response.request.url.path)
        if operation is None:
            if response.status_code >= 400 and response.request.method != "HEAD":
                ErrorResponse.model_validate_json(response.content)
            return
        declared = operation["responses"]
        status = str(response.status_code)
        assert status in declared or "default" in declared, (
            f"{response.request.url.path} does not declare {status}: {response.text}"
        )
        content = declared.get(status, declared.get("default")).get("content", {})
        if not content:
            assert response.content == b"", f"{response.request.url.path} declares no content for {status}"
            return
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in content, (
            f"{response.request.url.path} does not declare {media_type} for {status}"
        )
        if media_type == "application/json":
            definitions = {"components": self._schema["components"]}
            Draft202012Validator(content[media_type]["schema"] | definitions).validate(response.json())

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for template, operations in self._schema["paths"].items():
            parts, values = template.split("/"), path.split("/")
            if len(parts) == len(values) and all(
                part == value or part.startswith("{") for part, value in zip(parts, values, strict=True)
            ):
                operation: dict[str, Any] | None = operations.get(method)
                return operation
        return None


def check_answers(client: TestClient) -> None:
    """From now on, hold every answer that `client` gets to the schema."""
    schema = client.get("/openapi.json").json()
    client.event_hooks["response"].append(AnswerCheck(schema))
