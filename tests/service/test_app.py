"""The composition root, as far as it goes without a cluster."""

import warnings

import pytest

from safelight.pipeline.catalog.served_models import UnknownModel
from safelight.service.settings import Settings

with warnings.catch_warnings():  # Serve's own, about pydantic
    warnings.simplefilter("ignore")
    from safelight.service.app import app_from_args, build_app


@pytest.mark.parametrize("stages", ["split", "colocated"])
def test_an_application_is_built_for_each_layout(stages):
    assert app_from_args({"model": "tiny", "stages": stages})._bound_deployment.name == "Gateway"


def test_a_model_that_is_not_there_is_said_before_anything_starts():
    with pytest.raises(UnknownModel, match="nosuch"):
        build_app(Settings(model="nosuch"))
