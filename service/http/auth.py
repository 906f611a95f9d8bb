"""Who may ask what. Of the operator's own routes; whoever may draw is for the network in front to say."""

import secrets

from starlette.requests import Request

from safelight.service.errors import Unauthorized


def require_admin(request: Request, admin_key: str) -> None:
    """Raise `Unauthorized` unless the request bears the operator's key; without one anybody may ask."""
    if not admin_key:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), admin_key.encode()):
        raise Unauthorized()
