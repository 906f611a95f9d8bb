"""How the stages are made from the settings."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.pipeline.assembly import decoder, encoder, engine
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.engine.image_files import encode_image, encode_preview
from safelight.service import inprocess
from safelight.service.inprocess import InProcessPipeline, make_pipelines
from safelight.service.messages import ImageFormat, RequestContext
from safelight.service.settings import Settings
from tests.fakes import FakeDecoder, make_params
from tests.tiny_models import write_tiny_model

BUILDERS = {
    "encode": (encoder, "build_text_encoder"),
    "denoise": (engine, "build_engine"),
    "decode": (decoder, "build_decoder"),
}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The keyword arguments with which each stage builds its part, which is built for real."""
    options: dict[str, dict[str, Any]] = {}

    def record(stage: str) -> None:
        module, name = BUILDERS[stage]
        build = getattr(module, name)

        def build_and_record(*args: Any, **kwargs: Any) -> Any:
            options[stage] = kwargs
            return build(*args, **kwargs)

        monkeypatch.setattr(module, name, build_and_record)

    for stage in BUILDERS:
        record(stage)
    return options


@pytest.mark.parametrize(
    ("settings", "threads"),
    [
        ({}, {"encode": 1, "denoise": 3, "decode": 1}),  # a text and an image of `tiny` are little work
        ({"encode_threads": 2, "decode_threads": 4}, {"encode": 2, "denoise": 3, "decode": 4}),
        ({"denoise_threads": 1, "max_rows": 6, "max_tokens": 999}, {"encode": 1, "denoise": 1, "decode": 1}),
    ],
)
def test_stages_are_built_as_the_settings_say(
    built: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, int],
    threads: dict[str, int],
) -> None:
    monkeypatch.setattr(inprocess, "num_cores", lambda: 3)
    values = Settings(model="tiny", peak_tflops=2.0, **settings)
    pipeline = InProcessPipeline(find_model("tiny"), values)
    pipeline.wait()
    assert pipeline.denoiser.status().peak_flops == 2e12
    pipeline.close()
    assert {stage: options["num_threads"] for stage, options in built.items()} == threads
    assert (built["denoise"]["max_rows"], built["denoise"]["max_tokens"]) == (
        values.max_rows,
        values.max_tokens,
    )


def test_a_stage_of_much_work_uses_every_core(
    built: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inprocess, "num_cores", lambda: 3)
    monkeypatch.setattr(inprocess, "SMALL_FLOPS", 1.0)
    pipeline = InProcessPipeline(find_model("tiny"), Settings(model="tiny", peak_tflops=2.0))
    pipeline.wait()
    pipeline.close()
    assert {options["num_threads"] for options in built.values()} == {3}


@pytest.mark.parametrize("output", [ImageFormat("png", 0), ImageFormat("webp", 100), ImageFormat("jpeg", 7)])
def test_a_file_is_written_as_the_request_says(monkeypatch: pytest.MonkeyPatch, output: ImageFormat) -> None:
    monkeypatch.setattr(decoder, "build_decoder", lambda *args, **kwargs: FakeDecoder())
    stage = inprocess.make_decode_stage(find_model("tiny"), Settings(model="tiny"))
    stage.close()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    params = make_params(prompt="a red apple", seed=5)
    expected = encode_image(pixels, output.format, output.compression, params, "tiny")
    assert stage._write_image(pixels, output, params, "") == expected
    other = encode_image(pixels, output.format, output.compression, params, "other")
    assert stage._write_image(pixels, output, params, "other") == other != expected
    for is_edit in (False, True):
        preview = encode_preview(pixels, output.format, output.compression, is_edit)
        assert stage._write_preview(pixels, output, is_edit) == preview
    stage = inprocess.make_decode_stage(find_model("tiny"), Settings(model="tiny", mark_images=False))
    stage.close()
    assert b"trainedAlgorithmicMedia" in expected
    for file in (stage._write_image(pixels, output, params, ""), stage._write_preview(pixels, output, False)):
        assert b"trainedAlgorithmicMedia" not in file


def test_a_denoiser_finds_what_its_predecessor_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model="tiny", denoise_threads=1, calibration_folder=str(tmp_path))
    first = inprocess.make_denoise_stage(find_model("tiny"), settings)
    first.wait()
    first.close()
    names = ("cost_curve.measure_curve", "peak.quick_gemm_peak", "memory.memory_limits")
    for name in names:
        monkeypatch.setattr(f"safelight.pipeline.calibration.{name}", None)
    second = inprocess.make_denoise_stage(find_model("tiny"), settings)
    second.wait()
    assert second.status().curve == first.status().curve
    assert second.status().peak_flops == first.status().peak_flops
    second.close()
    [path] = tmp_path.iterdir()
    path.unlink()
    third = inprocess.make_denoise_stage(find_model("tiny"), settings)
    with pytest.raises(TypeError):  # it would measure
        third.wait()
    third.close()


def test_large_libraries_are_imported_before_any_stage_has_a_thread() -> None:
    """Two threads that import at once can fail, and imports would slow the denoiser's first ticks."""
    program = """
import sys, threading
from safelight.pipeline.catalog.served_models import find_model
from safelight.service.inprocess import InProcessPipeline
from safelight.service.settings import Settings

class Watcher:
    importers = {}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        cls.importers.setdefault(name, (threading.current_thread().name, threading.active_count()))

model = find_model("emoji-128")
sys.meta_path.insert(0, Watcher)
pipeline = InProcessPipeline(model, Settings(model="emoji-128", peak_tflops=1.0))
pipeline.wait()
pipeline.close()
print(*(Watcher.importers[name] for name in ("torch", "open_clip", "torchvision")))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == " ".join([str(("MainThread", 1))] * 3)


async def test_models_that_share_stages_give_the_bytes_that_each_gives_alone(tmp_path: Path) -> None:
    """Also while images of both are under way at once, and in the file: each has its own model's name."""
    settings = Settings(model="tiny", peak_tflops=1.0)
    other = find_model(str(write_tiny_model(tmp_path / "other", seed=1)))
    models = [find_model("tiny"), other]
    images = [make_params(width=64, height=64, seed=seed, prompt=f"apple {seed % 2}") for seed in range(4)]
    alone = []
    for model in models:
        pipeline = InProcessPipeline(model, settings)
        alone.append([(await pipeline.generate(image, ImageFormat())).image for image in images])
        pipeline.close()
    first, second = make_pipelines(models, settings)
    assert (first.encoder, first.decoder) == (second.encoder, second.decoder)
    assert first.denoiser is not second.denoiser
    results = await asyncio.gather(
        *(
            pipeline.generate(image, ImageFormat(), RequestContext(model=model.id))
            for image in images
            for pipeline, model in zip((first, second), models, strict=True)
        )
    )
    for pipeline in (first, second):
        pipeline.close()
    together = [result.image for result in results]
    assert [together[0::2], together[1::2]] == alone
    assert alone[0][0] != alone[1][0]
