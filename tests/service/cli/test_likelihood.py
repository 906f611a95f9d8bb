"""`safelight likelihood`: its report, its reproducibility, and what it refuses."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from safelight.service import cli
from tests.broken import tiny_without


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disc of the size that the tiny model generates."""
    path = tmp_path / "disc.png"
    disc(64).save(path)
    return path


def disc(side: int) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).ellipse(
        (side // 6, side // 6, side - side // 6, side - side // 6), fill=(200, 30, 30)
    )
    return image


def report(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert cli.main(["likelihood", *argv, "--model", "tiny", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report: dict[str, Any] = json.loads(out)
    return report


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr with which `argv` is refused."""
    code: str | int | None
    try:
        code = cli.main(["likelihood", *argv])
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    [line] = str(err).splitlines()
    return line


def test_the_json_report(capsys: pytest.CaptureFixture[str], image: Path) -> None:
    result = report(
        capsys, str(image), "--prompt", "a red xqzzy", "--steps", "3", "--probes", "2", "--seed", "4"
    )
    seconds, blur = result.pop("seconds"), result.pop("blur")
    assert seconds > 0
    assert blur == pytest.approx(0.001, rel=0.01)
    numbers = [result.pop(key) for key in ("bits_per_dim", "bits_per_dim_empty_prompt", "explained_nats")]
    assert all(set(number) == {"value", "standard_error"} for number in numbers)
    prompt, empty, gain = (number["value"] for number in numbers)
    assert gain == pytest.approx((empty - prompt) * 256 * 0.6931472, abs=1e-6)
    assert result == {
        "image": str(image),
        "model": "tiny",
        "prompt": "a red xqzzy",
        "of": "latent",
        "method": "ode",
        "num_dims": 256,
        "num_steps": 3,
        "probes": 2,
        "seed": 4,
        "prompt_truncated": False,
        "unknown_words": result["unknown_words"],
        "corrected_words": {},
    }


def test_a_seed_decides_the_estimate(capsys: pytest.CaptureFixture[str], image: Path) -> None:
    argv = (str(image), "--prompt", "a red apple", "--steps", "2", "--probes", "2")
    first, again, other = (report(capsys, *argv, "--seed", seed) for seed in ("1", "1", "2"))
    assert first["bits_per_dim"] == again["bits_per_dim"]
    assert first["explained_nats"] == again["explained_nats"]
    assert first["bits_per_dim"] != other["bits_per_dim"]


def test_a_seed_decides_the_bound_which_differs_from_the_density(
    capsys: pytest.CaptureFixture[str], image: Path
) -> None:
    argv = (str(image), "--prompt", "a red apple", "--probes", "2", "--steps", "5")
    ode, first, again = (
        report(capsys, *argv, "--method", method)["bits_per_dim"] for method in ("ode", "elbo", "elbo")
    )
    assert first == again != ode
    assert first["standard_error"] > 0


def test_the_bound_takes_more_steps_by_default(capsys: pytest.CaptureFixture[str], image: Path) -> None:
    assert (
        report(capsys, str(image), "--prompt", "x", "--probes", "1", "--method", "elbo")["num_steps"] == 200
    )


def test_one_probe_has_no_standard_error(capsys: pytest.CaptureFixture[str], image: Path) -> None:
    result = report(capsys, str(image), "--prompt", "x", "--steps", "1", "--probes", "1")
    assert result["bits_per_dim"]["standard_error"] is None


def test_the_text_output(capsys: pytest.CaptureFixture[str], image: Path) -> None:
    argv = ["--prompt", "apple", "--model", "tiny", "--steps", "2", "--probes", "2"]
    assert cli.main(["likelihood", str(image), *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"latent of {image} under tiny, 256 dimensions" in out
    assert re.search(r"-?\d+\.\d{4} ± \d+\.\d{4}  with the prompt\n", out)
    assert re.search(r"the prompt explains -?\d+\.\d\d ± \d+\.\d\d nats", out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", " "], "--prompt must not be empty"),
        (["--prompt", "x" * 32001], "--prompt has 32001 characters; at most 32000"),
        (["--prompt", "x", "--steps", "0"], "--steps must be between 1 and 1000, got 0"),
        (["--prompt", "x", "--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--prompt", "x", "--probes", "0"], "--probes must be between 1 and 1000, got 0"),
        (["--prompt", "x", "--seed", "-1"], "--seed must be between 0 and"),
        (["--prompt", "x", "--model", "nosuch"], "'nosuch' is neither a folder nor one of"),
        ([], "required: --prompt"),
    ],
)
def test_an_invalid_flag_is_one_line(
    capsys: pytest.CaptureFixture[str], image: Path, options: list[str], message: str
) -> None:
    assert message in refused(capsys, str(image), *options)


def transparent(path: Path) -> None:
    image = disc(64).convert("RGBA")
    image.putpixel((0, 0), (255, 255, 255, 128))
    image.save(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no file"),
        (Path.mkdir, "is a folder, not an image"),
        (lambda path: path.write_text("not an image"), "is not an image that can be read"),
        (lambda path: path.write_bytes(b""), "is not an image that can be read"),
        (lambda path: disc(65).save(path), "is 65x65 pixels, but tiny generates 64x64 only; resize it first"),
        (lambda path: Image.new("I;16", (64, 64)).save(path), "has pixels of mode I;16"),
        (transparent, "is transparent in places; put it on a background first"),
    ],
)
def test_an_invalid_image_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "x.png"
    write(path)
    assert message in refused(capsys, str(path), "--prompt", "x", "--model", "tiny")


def test_a_damaged_file_is_one_line(capsys: pytest.CaptureFixture[str], image: Path) -> None:
    image.write_bytes(image.read_bytes()[:200])
    assert "cannot be read: " in refused(capsys, str(image), "--prompt", "x", "--model", "tiny")


def test_an_opaque_alpha_channel_changes_nothing(
    capsys: pytest.CaptureFixture[str], image: Path, tmp_path: Path
) -> None:
    path = tmp_path / "opaque.png"
    disc(64).convert("RGBA").save(path)
    with_alpha, without = (
        report(capsys, str(p), "--prompt", "x", "--steps", "1", "--probes", "1")["bits_per_dim"]
        for p in (path, image)
    )
    assert with_alpha == without


def test_a_broken_checkpoint_is_refused_with_the_tensors_name(
    capsys: pytest.CaptureFixture[str], image: Path, tmp_path: Path
) -> None:
    broken = str(tiny_without("proj_out.weight", tmp_path))
    assert "proj_out.weight" in refused(capsys, str(image), "--prompt", "x", "--model", broken)


def test_ctrl_c_ends_the_integral_at_once(image: Path) -> None:
    """It runs on a terminal, where its progress shows that it has started."""
    controller, terminal = pty.openpty()
    argv = (
        "likelihood",
        str(image),
        *["--prompt", "x", "--model", "tiny", "--steps", "1000", "--probes", "50"],
    )
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-m", "safelight.service.cli", *argv],
        stderr=terminal,
        stdout=subprocess.PIPE,
        env=environment,
    )
    os.close(terminal)
    watchdog = threading.Timer(200, process.kill)
    watchdog.start()
    output = b""
    while b" 0.1%" not in output:
        assert (chunk := os.read(controller, 4096)), output
        output += chunk
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    watchdog.cancel()
    assert process.communicate()[0] == b""
    os.close(controller)
