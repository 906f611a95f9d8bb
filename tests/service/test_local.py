"""Starting a local service, as far as it can be tested without Ray."""

import os
import re
import shutil
import signal
import sys
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
from safelight.service.runtime.addresses import Address
from safelight.service.runtime.causes import first_cause
from safelight.service.runtime.readiness import ReadinessAnswer
from safelight.service.settings import Settings
from tests.pipeline.engine.test_public_pipelines import FAMILIES

with warnings.catch_warnings():  # Serve warns about pydantic
    warnings.simplefilter("ignore")
    import ray
    from ray import serve
    from ray._private import services
    from ray._private.node import Node

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
    assert first_cause(*reports) == cause


NOWHERE = Address("127.0.0.1", 9)


@pytest.mark.parametrize(
    ("limit", "message"),
    [("READY_SECONDS", "not ready after"), ("REACHABLE_SECONDS", "nothing has answered")],
)
def test_waiting_ends_after_each_time_limit(
    monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    monkeypatch.setattr(local, limit, 0.01)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.0)
    with pytest.raises(local.CannotServe, match=message):
        local.wait_until_ready(NOWHERE)


def test_waiting_ends_when_the_model_cannot_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "ask_readiness", lambda address: ReadinessAnswer(False, True, "no image"))
    with pytest.raises(local.CannotServe, match="the warm-up image failed: no image"):
        local.wait_until_ready(NOWHERE)


@pytest.fixture
def ray_inits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """The options with which Ray would have been started; nothing is started."""
    inits: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **options: inits.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(local, "ENVIRONMENT", {})
    monkeypatch.setattr(services, "start_api_server", services.start_api_server)
    for method in ("start_monitor", "start_log_monitor"):
        monkeypatch.setattr(Node, method, getattr(Node, method))
    monkeypatch.setattr(os, "environ", os.environ | {"RAY_TMPDIR": str(tmp_path)})
    return inits


def test_ray_gets_the_object_store_of_the_settings(
    ray_inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "object_store_bytes", lambda settings: settings.max_pictures)
    local.start_ray(Settings(max_pictures=77), lambda text: None)
    [options] = ray_inits
    assert options["object_store_memory"] == 77
    assert (options["address"], options["include_dashboard"]) == ("local", False)


def test_ray_starts_no_process_that_nothing_uses(ray_inits: list[dict[str, Any]]) -> None:
    """The API server would ask metadata servers where it runs: tests/environments sees that nothing asks."""
    local._start_ray(lambda text: None, 1)
    start: Any = services.start_api_server
    assert start(None, False, "127.0.0.1") == (None, None)
    node = Node.__new__(Node)  # starts no process; the methods fail on it unless they do nothing
    assert node.start_monitor() is node.start_log_monitor() is None


@pytest.mark.parametrize("num_failures", [1, local.RAY_ATTEMPTS - 1, local.RAY_ATTEMPTS])
def test_ray_is_started_again_a_few_times_if_it_fails(
    ray_inits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, num_failures: int
) -> None:
    def start(**options: Any) -> None:
        ray_inits.append(options)
        if len(ray_inits) <= num_failures:
            raise RuntimeError("the disk is cold")

    monkeypatch.setattr(ray, "init", start)
    if num_failures == local.RAY_ATTEMPTS:
        with pytest.raises(local.CannotServe, match="^Ray did not start: the disk is cold$"):
            local._start_ray(lambda text: None, 1)
    else:
        local._start_ray(lambda text: None, 1)
    assert len(ray_inits) == min(num_failures + 1, local.RAY_ATTEMPTS) == min(num_failures + 1, 5)


def test_gateways_serve_http_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setenv("RAY_TMPDIR", "/somewhere")
    monkeypatch.setattr(serve, "start", lambda **options: started.append(options))
    monkeypatch.setattr(serve, "run", lambda app, **options: started.extend([app, options]))
    local._deploy(Settings(model="tiny"))
    [start, app, run] = started
    assert start == {"proxy_location": "Disabled"}
    assert Path("/somewhere/http.sock") in app._bound_deployment.init_args
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
        # two texts of 32 states of 192 numbers with a mask, four latents of 8 x 16 x 16, a file of 128 x 128
        (
            {"model": "emoji-128", "max_pictures": 5000},
            2 * 32 * (192 * 4 + 1) + 4 * 4 * 8 * 16 * 16 + 3 * 128 * 128,
        ),
        ({"model": "emoji-128", "max_pictures": 5000, "stages": "colocated"}, 3 * 128 * 128),
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


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory of Linux")
def test_a_store_that_shared_memory_cannot_hold_lies_in_a_folder(
    tmp_path: Path, memory: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    assert local.place_object_store(GB, tmp_path, tmp_path) == (None, GB)
    assert not caplog.messages
    assert local.place_object_store(GB, tmp_path, tmp_path / "missing") == (str(tmp_path), GB)
    assert "missing has 0 MiB free and Ray's object store needs 953 MiB" in caplog.text
    memory(GB // 2)  # of both
    assert local.place_object_store(GB, tmp_path, tmp_path) == (str(tmp_path), GB // 2 * 9 // 10)
    memory(80 << 20)
    with pytest.raises(local.CannotServe, match="has no room either"):
        local.place_object_store(GB, tmp_path, tmp_path)


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
