"""The admin key of the operator's route. All other routes are open: a proxy in front may restrict them."""

import secrets

from fastapi import Security
from fastapi.params import Depends
from fastapi.security import HTTPBearer
from pydantic import SecretStr
from starlette.requests import Request

from safelight.service.errors import Unauthorized

ADMIN_KEY = HTTPBearer(scheme_name="admin_key", description="The setting `admin_key`.", auto_error=False)


def admin_key(key: SecretStr) -> list[Depends]:
    """The dependencies by which a route's schema says that it asks for `key`; none if that is empty."""
    return [Security(ADMIN_KEY)] if key.get_secret_value() else []


async def require_admin(request: Request, admin_key: SecretStr) -> None:
    """Raise `Unauthorized` unless `request` has `admin_key`; an empty one admits every caller."""
    key = admin_key.get_secret_value()
    if not key:
        return
    token = await ADMIN_KEY(request)
    if token is None or not secrets.compare_digest(token.credentials.strip().encode(), key.encode()):
        raise Unauthorized()
