"""Who may call which route. A route without a rule here keeps the gateway from being made."""

from collections.abc import Iterable
from enum import Enum


class Rule(Enum):
    """What a request must have."""

    PUBLIC = "nothing: the route has no secret, and does no work"
    SIGNED = "a signature in its address, of the service's own"
    CALLER = "an API key, where these are required"
    DRAWING = "an API key, and room in its limits"
    METRICS = "the metrics key"
    ADMIN = "the admin key"


PAGE_FILES = "/page/"  # the page's own, each a route
PUBLIC_ROUTES = (
    "/", "/livez", "/readyz", "/health", "/docs", "/docs/assets", "/docs/oauth2-redirect", "/openapi.json",
)  # fmt: skip
SDAPI_LISTS = (
    "face-restorers", "hypernetworks", "interrupt", "latent-upscale-modes", "loras", "options", "progress",
    "prompt-styles", "samplers", "schedulers", "sd-models", "sd-vae", "upscalers",
)  # fmt: skip
SDAPI = "/sdapi/v1"
# By path templates; one with a method in front, such as `POST /v1/models`, goes before that without.
RULES: dict[str, Rule] = {
    **dict.fromkeys(PUBLIC_ROUTES, Rule.PUBLIC),
    "/v1/images/generations": Rule.DRAWING,
    "/v1/images/edits": Rule.DRAWING,
    "/v1/images/quote": Rule.CALLER,
    "/v1/images/files/{name}": Rule.SIGNED,
    "/v1/images/jobs": Rule.CALLER,
    "/v1/images/jobs/{job_id}": Rule.CALLER,
    "/v1/images/jobs/{job_id}/content": Rule.CALLER,
    "/v1/files": Rule.CALLER,
    "/v1/files/{file_id}": Rule.CALLER,
    "/v1/files/{file_id}/content": Rule.CALLER,
    "/v1/batches": Rule.CALLER,
    "POST /v1/batches": Rule.DRAWING,
    "/v1/batches/{batch_id}": Rule.CALLER,
    "/v1/batches/{batch_id}/cancel": Rule.CALLER,
    f"{SDAPI}/txt2img": Rule.DRAWING,
    f"{SDAPI}/img2img": Rule.DRAWING,
    **{f"{SDAPI}/{name}": Rule.CALLER for name in SDAPI_LISTS},
    "/mcp": Rule.DRAWING,
    "/v1/models": Rule.CALLER,
    "/v1/models/{model_id:path}": Rule.CALLER,
    "POST /v1/models": Rule.ADMIN,
    "DELETE /v1/models/{model_id:path}": Rule.ADMIN,
    "/v1/curve": Rule.CALLER,
    "/metrics": Rule.METRICS,
    "/v1/accounting": Rule.ADMIN,
    "/v1/admin/keys": Rule.ADMIN,
    "/v1/admin/keys/{name}": Rule.ADMIN,
    "/v1/admin/keys/{name}/rotate": Rule.ADMIN,
}


class NoRule(Exception):
    """A route that has no rule."""


def rule_of(path: str, methods: Iterable[str] = ("GET",)) -> Rule:
    """The rule of the route with this path template: that of its method, else that of all methods.

    Raises `NoRule`, also for a route whose methods have several.
    """
    if path.startswith(PAGE_FILES):
        return Rule.PUBLIC
    rules = {RULES.get(f"{method} {path}", RULES.get(path)) for method in methods}
    if len(rules) != 1 or None in rules:
        raise NoRule(f"{path}: say in RULES who may call it")
    return next(rule for rule in rules if rule is not None)


def takes_basic(path: str) -> bool:
    """Whether a route takes the key as the password of HTTP basic authentication."""
    return path.startswith(f"{SDAPI}/")
