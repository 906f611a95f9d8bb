"""The command line: refusals, output, and imports."""

import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.params import GenerationParams
from safelight.service import cli
from safelight.service.messages import DecodeResult, ImageFormat, Upload
from safelight.service.settings import Settings
from tests.broken import tiny_without
from tests.fakes import USAGE


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line on stderr with which `argv` is refused."""
    code: str | int | None
    try:
        code = cli.main(argv)
    except SystemExit as exit_call:
        code = exit_call.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    [line] = str(err).splitlines()
    return line


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "required: COMMAND"),
        (["draw"], "invalid choice: 'draw'"),
        (["generate"], "required: PROMPT"),
        (["generate", "x", "--steps", "many"], "--steps: invalid int value: 'many'"),
        (["generate", ""], "PROMPT must be a string of 1 to 32000 characters, not blank"),
        (["generate", "x", "--steps", "201"], "--steps must be an integer between 1 and 200"),
        (["generate", "x", "--solver", "plms", "--steps", "2"], "--steps must be at least 3 for plms"),
        (
            ["generate", "x", "--guidance-scale", "21"],
            "--guidance-scale must be a number between 0.0 and 20.0",
        ),
        (["generate", "x", "--guidance-scale", "nan"], "--guidance-scale must be a number"),
        (["generate", "x", "--size", "7x7"], "--size 7x7 is not served by tiny; allowed: 64x64"),
        (["generate", "x", "--size", "big"], "--size must be WIDTHxHEIGHT or auto"),
        (["generate", "x", "--solver", "magic"], "--solver 'magic' is not served by tiny; allowed: "),
        (["generate", "x", "--strength", "0.5"], "--strength is for editing an image: give it one"),
        (["generate", "x", "--mask", "mask.png"], "--mask is for editing an image: give it one"),
        (["generate", "x", "--image", "/nowhere.png"], "/nowhere.png cannot be read: No such file"),
        (
            ["generate", "x", "--image", __file__, "--strength", "2"],
            "--strength must be between 0 and 1, got 2",
        ),
        (
            ["generate", "x", "--image", __file__, "-o", "/tmp/x.png"],
            "--image must be a PNG, JPEG or WebP file",
        ),
        (["generate", "x", "--seed", "-1"], "--seed must be an integer between 0 and"),
        (["generate", "x", "-n", "11"], "-n must be an integer between 1 and 10"),
        (["generate", "x", "-o", "image.gif"], "got 'image.gif'"),
        (["generate", "x", "-o", "/nowhere/image.png"], "no folder /nowhere"),
        (["generate", "x", "--model", "nosuch"], "'nosuch' is neither a folder nor one of"),
        (["encode", "x"], "required: -o/--output"),
        (
            ["encode", "x", "--model", "nosuch", "-o", "x.safetensors"],
            "'nosuch' is neither a folder nor one of",
        ),
        (["encode", "x", "-o", "/nowhere/x.safetensors"], "no folder /nowhere"),
        (["encode", "a" * 32001, "-o", "x.safetensors"], "PROMPT has 32001 characters; at most 32000"),
        (["bench", "--engine-only", "--no-compile"], "--no-compile has no effect with --engine-only"),
        (["bench", "--in-flight", "1"], "--in-flight has no effect without --random-weights"),
        (["bench", "--random-weights", "sdxl"], "--random-weights must be one of pixart-alpha, "),
        (
            ["bench", "--random-weights", "tiny", "--rounds", "2"],
            "--rounds has no effect with --random-weights",
        ),
        (["bench", "--random-weights", "tiny", "--size", "big"], "--size must be WIDTHxHEIGHT, got 'big'"),
        (["bench", "--random-weights", "tiny", "--size", "9x9"], "size 9x9 is not possible"),
        (["bench", "--random-weights", "tiny", "--steps", "201"], "steps must be between 1 and 200"),
        (
            ["bench", "--random-weights", "tiny", "--in-flight", "0,1"],
            "--in-flight must be numbers from 1",
        ),
        (["plan", "--model", "sd3-medium", "--variant", "fp16"], "--variant has no effect on sd3-medium"),
        (["serve", "--port", "http"], "port must be a whole number, got 'http'"),
        (["serve", "--stages", "one"], "stages must be one of split, colocated"),
        (["serve", "--model", "nosuch", "--port", "0"], "'nosuch' is neither a folder nor one of"),
        (["serve", "--host", "203.0.113.7", "--port", "0"], "cannot listen on port 0 of 203.0.113.7"),
    ],
)
def test_a_users_mistake_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: list[str], complaint: str
) -> None:
    monkeypatch.setenv("SAFELIGHT_MODEL", "tiny")
    monkeypatch.setattr("safelight.service.cli.serve._serve", lambda *_: pytest.fail("a service was started"))
    assert complaint in refusal(capsys, *argv)


def test_a_busy_port_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, busy_port: int
) -> None:
    monkeypatch.setenv("SAFELIGHT_MODEL", "tiny")
    assert f"cannot listen on port {busy_port}" in refusal(capsys, "serve", "--port", str(busy_port))


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_json_reports_the_images_that_are_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ("generate", "a red apple", "--model", "tiny", "--seed", "5", "--steps", "2", "-n", "2", "--json")
    assert cli.main([*argv, "-o", str(tmp_path / "apple.png")]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert report["images"] == [
        {"path": str(tmp_path / f"apple-{k}.png"), "seed": 5, "width": 64, "height": 64} for k in range(2)
    ]
    assert report["usage"]["safelight"]["nfe"] == 4
    images = [Image.open(tmp_path / f"apple-{k}.png") for k in range(2)]
    assert {image.format for image in images} == {"PNG"}
    # a file holds its own parameters, so two files differ whatever they show
    first, second = map(np.asarray, images)
    assert not np.array_equal(first, second)


def test_every_flag_of_generate_reaches_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Sequence[GenerationParams], ImageFormat]] = []
    uploads: list[Upload | None] = []

    async def draw(
        model: ModelInfo,
        settings: Settings,
        images: Sequence[GenerationParams],
        output: ImageFormat,
        upload: Upload | None,
        _: object,
    ) -> list[DecodeResult]:
        calls.append((images, output))
        uploads.append(upload)
        return [DecodeResult(b"image", USAGE) for _ in images]

    monkeypatch.setattr("safelight.service.cli.generate._draw", draw)
    flags = (
        "--negative-prompt blue --model tiny --size 64x64 --steps 9 --solver ddim "
        "--timestep-spacing linspace --eta 0.5 --seed 5 --guidance-scale 2.5 --guidance-interval 0.25 0.75 "
        "--guidance-stride 3 --guidance-rescale 0.7 -n 2"
    )
    argv = ["generate", "a red apple", *flags.split(), "-o", str(tmp_path / "apple.webp")]
    assert cli.main(argv) == 0
    [(images, output)] = calls
    assert images == [
        GenerationParams(
            prompt="a red apple", negative_prompt="blue", width=64, height=64, num_steps=9,
            guidance_scale=2.5, solver="ddim", seed=5, image_index=index, timestep_spacing="linspace",
            eta=0.5, guidance_interval=(0.25, 0.75), guidance_stride=3, guidance_rescale=0.7,
        )
        for index in range(2)
    ]  # fmt: skip
    assert output == ImageFormat("webp", 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apple-0.webp", "apple-1.webp"]
    assert "seed 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "flags", "reason"),
    [
        ("/proc/x.png", (), "cannot write /proc/x.png: "),
        ("folder.png", (), "folder.png: Is a directory"),
        ("x-1.png", ("-n", "2"), "x-1-1.png: Is a directory"),
        (f"{'x' * 250}.png", ("-n", "3"), "File name too long"),
        ("nowhere/x.png", ("-n", "3"), "there is no folder"),
        ("/proc/x.safetensors", (), "cannot write /proc/x.safetensors: "),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    output: str,
    flags: tuple[str, ...],
    reason: str,
) -> None:
    for name in ("folder.png", "x-1-1.png"):
        (tmp_path / name).mkdir()
    for work in (
        "safelight.service.cli.generate._draw",
        "safelight.pipeline.assembly.encoder.build_text_encoder",
    ):
        monkeypatch.setattr(work, lambda *_: pytest.fail("the work began"))
    command = "encode" if output.endswith(".safetensors") else "generate"
    message = refusal(capsys, command, "x", "--model", "tiny", *flags, "-o", os.path.join(tmp_path, output))
    assert reason in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "x-1-1.png"]


def test_a_write_that_fails_halfway_is_told_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def draw(*_: object) -> list[DecodeResult]:
        return [DecodeResult(bytes(5000), USAGE)]

    monkeypatch.setattr("safelight.service.cli.generate._draw", draw)
    output = tmp_path / "x.png"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as on a full disk
    try:
        message = refusal(capsys, "generate", "x", "--model", "tiny", "-o", str(output))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in message
    assert list(tmp_path.iterdir()) == []


def test_the_seed_is_printed_and_the_suffix_selects_the_format(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "apple.webp"
    assert cli.main(["generate", "a red apple", "--model", "tiny", "--steps", "1", "-o", str(path)]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"{re.escape(str(path))}: seed \d+, [\d.]+ s\n", out)
    assert err == ""
    assert path.read_bytes()[8:12] == b"WEBP"


def test_a_broken_checkpoint_is_refused_with_the_tensors_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, output = tiny_without("proj_out.weight", tmp_path), tmp_path / "x.png"
    argv = ("generate", "x", "--model", str(model), "-o", str(output))
    assert "proj_out.weight" in refusal(capsys, *argv)


def test_text_states_and_their_mask_are_written_as_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "apple.safetensors"
    assert cli.main(["encode", "a red apple", "--model", "tiny", "-o", str(path)]) == 0
    with safe_open(path, "pt") as file:
        states, mask = file.get_tensor("states"), file.get_tensor("mask")
    [expected] = build_text_encoder(find_model("tiny")).encode(["a red apple"])
    assert str(states.dtype) == "torch.float32"
    assert states.shape == (1, *expected.states.shape) and torch.equal(states[0], expected.states)
    assert mask.shape == (1, *expected.mask.shape) and torch.equal(mask[0], expected.mask)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_call:
        cli.main(["--version"])
    assert not exit_call.value.code
    assert capsys.readouterr().out.startswith("safelight")


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (
            "import safelight.service.cli; safelight.service.cli.make_parser([])",
            {"torch", "ray", "pydantic", "numpy", "rich"},
        ),
        ("import safelight.service.http.gateway", {"torch", "ray", "diffusers"}),
        (
            "import safelight.service.ray_serve.deployments, safelight.service.app",
            {"torch", "diffusers", "open_clip"},
        ),
        (
            "import safelight.service.inprocess, safelight.service.stages.decode",
            {"torch", "ray", "fastapi"},
        ),
        ("import safelight.pipeline.benchmark.report", {"diffusers", "open_clip", "torch._dynamo"}),
        (
            "from safelight.pipeline.catalog.served_models import find_model; find_model('tiny')",
            {"torch", "open_clip"},
        ),
        (
            "import safelight.service.cli.generate, safelight.service.cli.serve, safelight.service.local",
            {"torch", "ray"},
        ),
    ],
)
def test_heavy_libraries_are_imported_late(code: str, heavy: set[str]) -> None:
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys; {code}; print(*{heavy!r} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == []
