"""The Ray Serve application, as far as it can be built without a cluster."""

import warnings

import pytest

from safelight.pipeline.catalog.served_models import UnknownModel
from safelight.service.settings import Settings

with warnings.catch_warnings():  # Serve's deprecation warning about pydantic
    warnings.simplefilter("ignore")
    from safelight.service.app import app_from_args, build_app


@pytest.mark.parametrize("stages", ["split", "colocated"])
def test_an_application_is_built_for_each_layout(stages: str) -> None:
    assert app_from_args({"model": "tiny", "stages": stages})._bound_deployment.name == "Gateway"


def test_an_unknown_model_is_refused_before_anything_starts() -> None:
    with pytest.raises(UnknownModel, match="nosuch"):
        build_app(Settings(model="nosuch"))
