"""The admin key of the operator's route. All other routes are open: a proxy in front may restrict them."""

import secrets
from typing import Annotated

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from safelight.service.errors import Unauthorized

ADMIN_KEY = HTTPBearer(
    scheme_name="admin_key",
    description="The setting `admin_key`; if it is empty, anyone may use the route.",
    auto_error=False,
)
BearerToken = Annotated[HTTPAuthorizationCredentials | None, Security(ADMIN_KEY)]


def require_admin(token: HTTPAuthorizationCredentials | None, admin_key: SecretStr) -> None:
    """Raise `Unauthorized` unless `token` is `admin_key`; an empty `admin_key` admits every caller."""
    key = admin_key.get_secret_value()
    if not key:
        return
    if token is None or not secrets.compare_digest(token.credentials.strip().encode(), key.encode()):
        raise Unauthorized()
