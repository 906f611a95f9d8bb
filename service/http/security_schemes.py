"""Says in the OpenAPI schema which key each route asks for."""

from typing import Any

from fastapi import FastAPI

from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.openapi import ERRORS
from safelight.service.http.route_rules import Rule, rule_of, takes_basic
from safelight.service.http.schemas import ErrorResponse

SCHEMES: dict[str, dict[str, str]] = {
    "api_key": {"type": "http", "scheme": "bearer", "description": "An API key of the service."},
    "api_key_as_password": {
        "type": "http",
        "scheme": "basic",
        "description": "An API key as password, with any user name.",
    },
    "admin_key": {"type": "http", "scheme": "bearer", "description": "The setting `admin_key`."},
    "metrics_key": {"type": "http", "scheme": "bearer", "description": "The setting `metrics_key`."},
}
ERROR_SCHEMA = {"$ref": f"#/components/schemas/{ErrorResponse.__name__}"}


def declare_security(app: FastAPI, gateway: Gateway) -> None:
    """Add schemes, and the answers of routes that ask for a key, to the schema."""

    make_plain_schema = app.openapi

    def make_schema() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        schema = make_plain_schema()
        if is_new:  # it is kept, and changed in its place
            _secure(schema, gateway)
        return schema

    app.openapi = make_schema  # type: ignore[method-assign]


def _secure(schema: dict[str, Any], gateway: Gateway) -> None:
    names: set[str] = set()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            # the schema writes a path's parameters without their kinds
            rule = rule_of(path.replace("{model_id}", "{model_id:path}"), (method.upper(),))
            if keys := _keys(rule, path, gateway):
                operation["security"] = [{name: []} for name in keys]
                names.update(keys)
                _add_answers(operation, rule)
    if names:
        schemes = {name: scheme for name, scheme in SCHEMES.items() if name in names}
        schema.setdefault("components", {})["securitySchemes"] = schemes


def _keys(rule: Rule, path: str, gateway: Gateway) -> tuple[str, ...]:
    """The schemes of which a route asks for one."""
    settings, has_keys = gateway.settings, gateway.access is not None
    if rule in (Rule.CALLER, Rule.DRAWING) and has_keys:
        return ("api_key", "api_key_as_password") if takes_basic(path) else ("api_key",)
    if rule is Rule.ADMIN and (has_keys or settings.admin_key.get_secret_value()):
        return ("admin_key",)
    if rule is Rule.METRICS and (has_keys or settings.metrics_key.get_secret_value()):
        return ("metrics_key", "admin_key")
    return ()


def _add_answers(operation: dict[str, Any], rule: Rule) -> None:
    """Declare the refusals of a key, where the route does not declare them itself."""
    for status in (401, 403, 429, 503) if rule is Rule.DRAWING else (401, 403, 503):
        operation["responses"].setdefault(
            str(status),
            {
                "description": ERRORS[status]["description"],
                "content": {"application/json": {"schema": ERROR_SCHEMA}},
            },
        )
