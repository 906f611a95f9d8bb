"""Starting a local service, as far as it can be tested without Ray."""

import os
import re
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safelight.models.families.registry import list_families
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.capacity.model_profiles import model_profile, published_profile
from safelight.pipeline.catalog.served_models import find_model
from safelight.service import local
from safelight.service.settings import Settings
from tests.pipeline.engine.test_public_pipelines import FAMILIES

with warnings.catch_warnings():  # Serve warns about pydantic
    warnings.simplefilter("ignore")
    import ray
    from ray import serve

REPORT = """The deployment failed to start 2 times in a row. See controller logs for details. Error:
ray::ServeReplica:safelight:Denoiser.initialize_and_get_metadata() (pid=3253, ip=192.0.2.2)
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "/srv/safelight/models/checkpoints/tensors.py", line 37, in fill
    raise CheckpointError(f"{folder}: tensor {first} is {problem}{more}")
safelight.models.checkpoints.json_files.CheckpointError: /x/transformer: tensor proj_out.weight is missing"""


@pytest.mark.parametrize(
    ("reports", "cause"),
    [
        (("", REPORT, "", "Deploying failed."), "/x/transformer: tensor proj_out.weight is missing"),
        (("", "Deploying failed.\nThe cluster is full."), "The cluster is full."),
    ],
)
def test_the_first_cause_is_the_innermost_message_of_serves_reports(
    reports: tuple[str, ...], cause: str
) -> None:
    assert local.first_cause(*reports) == cause


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000")]
)
def test_the_url_can_be_opened_on_this_machine(host: str, url: str) -> None:
    assert local.url_of(Settings(host=host)) == url


def test_waiting_ends_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "READY_SECONDS", 0.01)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.0)
    with pytest.raises(local.CannotServe, match="not ready after"):
        local.wait_until_ready("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("readiness", "reason"),
    [
        ('{"ready": false, "stages": {}, "reason": "no image", "failed": true}', "no image"),
        ('{"ready": false, "stages": {}, "reason": "lost", "failed": false}', None),
        ("Route table is not populated yet.", None),
        ("[]", None),
    ],
)
def test_waiting_ends_when_the_model_cannot_draw(readiness: str, reason: str | None) -> None:
    assert local.reason_to_give_up(readiness) == reason


@pytest.fixture
def ray_inits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options with which Ray would have been started; nothing is started."""
    inits: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **options: inits.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return inits


def test_ray_gets_the_object_store_of_the_settings(
    ray_inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the deployment, which is not made."""
    monkeypatch.setattr(local, "_deploy", lambda settings: pytest.fail("reached", pytrace=False))
    monkeypatch.setattr(local, "_drain", lambda seconds: None)
    monkeypatch.setattr(local, "_stop", lambda: None)
    monkeypatch.setattr(local, "ENVIRONMENT", {})
    monkeypatch.setattr(local, "object_store_bytes", lambda settings: settings.max_pictures)
    with (
        pytest.raises(pytest.fail.Exception, match="reached"),
        local.running_service(Settings(max_pictures=77), lambda text: None),
    ):
        pass
    [options] = ray_inits
    assert options["object_store_memory"] == 77
    assert (options["address"], options["include_dashboard"]) == ("local", False)


@pytest.mark.parametrize("num_failures", [1, 2, 3])
def test_ray_is_started_again_twice_if_it_fails(
    ray_inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, num_failures: int
) -> None:
    def start(**options: Any) -> None:
        ray_inits.append(options)
        if len(ray_inits) <= num_failures:
            raise RuntimeError("the disk is cold")

    monkeypatch.setattr(ray, "init", start)
    if num_failures == 3:
        with pytest.raises(local.CannotServe, match="^Ray did not start: the disk is cold$"):
            local._start_ray(lambda text: None, 1)
    else:
        local._start_ray(lambda text: None, 1)
    assert len(ray_inits) == min(num_failures + 1, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_serves_own_time_limit_is_longer_than_the_gateways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve answers a timeout in plain text."""
    started: list[Any] = []
    monkeypatch.setattr(serve, "start", lambda **options: started.append(options["http_options"]))
    monkeypatch.setattr(serve, "run", lambda app, **options: started.append(options))
    local._deploy(Settings(model="tiny", host="0.0.0.0", port=81, body_seconds=7.0, deadline_seconds=50.0))
    [http, run] = started
    assert (http.host, http.port) == ("0.0.0.0", 81)
    assert http.request_timeout_s > 7.0 + 50.0
    assert run == {"name": "safelight", "route_prefix": "/"}


GB = 10**9


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how much shared memory is free."""

    def set_free(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    set_free(100 * GB)
    return set_free


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("settings", "image_bytes"),
    [
        # two texts of 32 states of 192 numbers with a mask, latents of 8 x 16 x 16, a file of 128 x 128
        ({"max_pictures": 5000}, 2 * 32 * (192 * 4 + 1) + 4 * 8 * 16 * 16 + 3 * 128 * 128),
        ({"max_pictures": 5000, "stages": "colocated"}, 3 * 128 * 128),
    ],
)
def test_the_object_store_holds_all_images_in_flight(settings: dict[str, object], image_bytes: int) -> None:
    values = Settings(**settings)
    expected = values.max_pictures * image_bytes / local.SPILLING_SHARE
    assert expected > local.MIN_STORE_BYTES
    assert local.object_store_bytes(values) == pytest.approx(expected, abs=1)
    doubled = values.updated(gateway_replicas="1-2")
    assert local.object_store_bytes(doubled) == pytest.approx(2 * expected, abs=1)


def test_the_object_store_is_bounded_by_shared_memory(memory: Callable[[int], None]) -> None:
    settings = Settings(max_pictures=10_000)
    memory(GB)
    assert local.object_store_bytes(settings) == 0.9 * GB
    memory(64 << 20)  # Docker's default
    assert local.object_store_bytes(settings) == local.MIN_STORE_BYTES


def test_without_shared_memory_it_is_bounded_by_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 3_000_000}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert local.object_store_bytes(Settings(max_pictures=10_000), Path("/nowhere")) == 0.9 * GB


@pytest.mark.usefixtures("memory")
def test_the_embedded_model_needs_little() -> None:
    assert local.object_store_bytes(Settings()) == local.MIN_STORE_BYTES


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")  # of diffusers, which writes the folders: deprecations
def test_the_bytes_of_a_text_are_those_of_its_states(tmp_path: Path, name: str) -> None:
    FAMILIES[name](tmp_path)
    model = find_model(str(tmp_path))
    [text] = build_text_encoder(model).encode(["golden retriever" if model.labels else "a red apple"])
    assert model_profile(model).text_bytes == text.num_bytes


def test_the_bytes_of_published_texts_are_those_of_an_example() -> None:
    for family in list_families():
        if family.published is not None:
            configs = family.published.configs
            config, states = (
                family.network.read_config(configs["transformer"]),
                family.conditioning.num_states(configs),
            )
            tensors = family.network.example_text(config, states)
            nbytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
            assert published_profile(family.published.name).text_bytes == nbytes


def test_the_text_cache_holds_as_many_texts_as_its_description_says() -> None:
    field = Settings.model_fields["text_cache_bytes"]
    numbers = re.search(r"about ([\d,]+) texts of emoji-128 or (\d+) of", str(field.description))
    assert numbers is not None
    emoji, sd3 = model_profile(find_model("emoji-128")), published_profile("sd3-medium")
    assert int(numbers[1].replace(",", "")) == round(field.default / emoji.text_bytes, -3)
    assert int(numbers[2]) == field.default // sd3.text_bytes
