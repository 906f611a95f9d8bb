"""The interactive API documentation at `/docs`; the gateway itself serves all of its files."""

from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

ASSETS_URL = "/docs/assets"


def make_app(**options: Any) -> FastAPI:
    """A `FastAPI(**options)` whose `/docs` loads Swagger UI from `ASSETS_URL`; `/redoc` is off.

    FastAPI's own pages load their scripts from a content delivery network. ReDoc would load its logo from
    another even when its script is local.
    """
    return FastAPIOffline(
        redoc_url=None,
        static_url=ASSETS_URL,
        swagger_ui_parameters={"validatorUrl": None},  # else the schema is sent to validator.swagger.io
        **options,
    )
