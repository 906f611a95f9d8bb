"""What each command of the README and the user pages must answer: images, and values in text and JSON.

An image must be the file that the pipeline in this process draws for the same request, byte for byte. With a
seed in the command it must also show what the prompt names: its closest image in the gallery has the concept
and the style, and its frame the background.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

import safelight
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.catalog.served_models import find_model, list_families
from safelight.pipeline.diffusion.solvers import SOLVERS
from safelight.pipeline.engine.image_files import EXIF_IFD, USER_COMMENT
from safelight.pipeline.evaluation.nearest_image import frame_background, load_gallery, rate_images
from safelight.pipeline.evaluation.prompts import Prompt, read_prompt_sets
from safelight.service.http.schemas import Curves, ImageResponse, ModelList, Readiness
from safelight.service.telemetry.metric_tables import (
    GATEWAY_METRICS,
    LEDGER_METRICS,
    REQUEST_HISTOGRAMS,
    REQUEST_METRICS,
    STAGE_METRICS,
    TICK_METRICS,
)
from safelight.service.usage.report_schema import AccountingReport

MODEL, TURBO = "emoji-128", "emoji-128-turbo"
RED_APPLE, ROCKET = ("1f34e",), ("1f680",)
UMBRELLAS = ("2602", "2614", "26f1", "1f302")
EVAL_FLOOR = 0.5  # the embedded model, on seven sets of which `natural` is the hardest


@dataclass(frozen=True)
class Drawing:
    """A file that a command writes: image `index` of a request, and what it shows."""

    file: str
    prompt: str
    options: dict[str, Any] = field(default_factory=dict)  # without a seed, it is read from the file
    index: int = 0
    shows: Prompt | None = None
    source: str | None = None  # the file of which it is an edit
    strength: float | None = None


@dataclass(frozen=True)
class Answer:
    """What a command printed, the folder that it ran in, and a pipeline to compare with."""

    stdout: str
    folder: Path
    pipeline: safelight.Pipeline


Check = Callable[[Answer], None]


@dataclass(frozen=True)
class Expectation:
    """The answer that a command must give, for the command that matches `pattern`."""

    pattern: str
    check: Check = lambda answer: None
    drawings: tuple[Drawing, ...] = ()
    other_files: tuple[str, ...] = ()


def check_drawing(drawing: Drawing, answer: Answer) -> None:
    path = answer.folder / drawing.file
    options = {"seed": seed_of(path)} | drawing.options
    if drawing.source is None:
        images = answer.pipeline.generate(drawing.prompt, **options)
    else:
        source = answer.folder / drawing.source
        images = answer.pipeline.edit(drawing.prompt, source, strength=drawing.strength, **options)
    assert path.read_bytes() == images[drawing.index].bytes, f"{path.name} is not what the model draws"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
        assert image.format is not None and path.suffix == f".{image.format.lower()}"
    assert pixels.shape == (128, 128, 3)
    if drawing.shows is not None:
        check_shown(pixels, drawing.shows)
    if drawing.source is None and (drawing.shows is None or drawing.shows.concepts == RED_APPLE):
        middle = pixels[48:80, 48:80].reshape(-1, 3).mean(0)
        assert middle[0] > 1.5 * max(middle[1:]), "the middle of a red apple is red"


def check_shown(pixels: np.ndarray, prompt: Prompt) -> None:
    """Whether the closest gallery image, and the frame, are what the prompt asks for."""
    gallery = load_gallery(find_model(MODEL))
    rates = rate_images(gallery, [prompt], pixels[None])
    assert rates["concept_top1"].hits == 1, prompt
    if prompt.style:
        assert rates["style_accuracy"].hits == 1, prompt
    assert frame_background(gallery, pixels) == (prompt.background or "white")


def seed_of(path: Path) -> int:
    """The seed in the parameters that are written into the file."""
    with Image.open(path) as image:
        text = image.info.get("parameters")
        if text is None:
            text = (
                image.getexif().get_ifd(EXIF_IFD)[USER_COMMENT].removeprefix(b"UNICODE\0").decode("utf-16-be")
            )
    return int(re.findall(r"\bSeed: (\d+)", text)[0])


def check_python_usage(answer: Answer) -> None:
    nfe, seed = answer.stdout.split()[-2:]
    assert (int(nfe), int(seed)) == (2 * 12, 5)  # two images of twelve steps


def check_generate(answer: Answer) -> None:
    [(name, seed, seconds)] = re.findall(r"\A(\S+): seed (\d+), ([\d.]+) s\n\Z", answer.stdout)
    assert int(seed) == seed_of(answer.folder / name) and float(seconds) > 0.0


def check_edit(answer: Answer) -> None:
    response = ImageResponse.model_validate_json(answer.stdout)
    images = answer.pipeline.edit("a green apple", answer.folder / "red-apple.png", strength=0.6, seed=7)
    (image,) = response.data
    assert base64.b64decode(image.b64_json or "") == images[0].bytes
    edit = response.usage.safelight.edit
    assert edit is not None and response.usage.safelight.seeds == [7]


def check_stream(answer: Answer) -> None:
    *previews, completed = answer.stdout.split()
    assert completed == "image_generation.completed"
    assert set(previews) <= {"image_generation.partial_image"} and len(previews) <= 2


def check_generate_json(answer: Answer) -> None:
    report = json.loads(answer.stdout)
    assert report["images"] == [{"path": "noto-apple.jpeg", "seed": 1, "width": 128, "height": 128}]
    usage = report["usage"]["safelight"]
    assert (usage["nfe"], usage["rows"], usage["guidance_scale"], usage["seeds"]) == (20, 40, 6.0, [1])
    assert all(seconds > 0.0 for seconds in usage["device_seconds"].values())


def check_served_models(answer: Answer) -> None:
    model, student = ModelList.model_validate_json(answer.stdout).data
    assert (student.id, student.limits["num_inference_steps"][1]) == (TURBO, 4)
    info = find_model(MODEL)
    assert (model.id, model.sizes, model.licence) == (MODEL, ["128x128"], info.licence)
    assert set(model.solvers) == set(info.solvers) and set(model.timestep_spacings) == set(info.spacings)
    assert model.defaults["num_inference_steps"] == info.num_steps
    assert model.defaults["guidance_scale"] == info.guidance_scale
    assert model.defaults["solver"] == info.solver


def check_readiness(answer: Answer) -> None:
    readiness = Readiness.model_validate_json(answer.stdout)
    assert readiness.ready and readiness.reason is None
    assert readiness.stages.keys() == {"encode", "denoise", "decode"}
    assert all(stage.ready and stage.pictures > 0 for stage in readiness.stages.values())


def check_metrics(answer: Answer) -> None:
    families = {family.name: family for family in text_string_to_metric_families(answer.stdout)}
    tables = GATEWAY_METRICS, LEDGER_METRICS, REQUEST_METRICS, REQUEST_HISTOGRAMS, STAGE_METRICS, TICK_METRICS
    names = {metric.name for table in tables for metric in table}
    assert {name.removesuffix("_total") for name in names} <= families.keys()
    samples = {
        (sample.name, sample.labels.get("stage")): sample.value
        for family in families.values()
        for sample in family.samples
        if sample.labels.get("model", "") in ("", MODEL)
    }
    assert samples["safelight_images_total", None] > 0
    for stage in ("encode", "denoise", "decode"):
        assert samples["safelight_stage_up", stage] == 1
        busy = samples["safelight_stage_busy_seconds_total", stage]
        assert busy >= samples["safelight_stage_attributed_seconds_total", stage] > 0.0


def check_accounting(answer: Answer) -> None:
    report = AccountingReport.model_validate_json(answer.stdout)
    assert report.images > 0 and 0 < len(report.latest) <= 10
    assert report.images == sum(account.images for account in report.accounts)
    assert report.nfe == sum(account.stages["denoise"].nfe for account in report.accounts)
    assert report.requests.get("done", 0) == sum(a.requests.get("done", 0) for a in report.accounts)
    for stage, seconds in report.device_seconds.items():
        assert seconds == pytest.approx(sum(a.stages[stage].device_seconds for a in report.accounts))
    for balance in report.balance.stages.values():
        parts = balance.model_dump()
        assert parts.pop("busy") == pytest.approx(sum(parts.values()), abs=1e-6)


def check_curve(answer: Answer) -> None:
    curves = Curves.model_validate_json(answer.stdout)
    for curve in (curves.encode, curves.denoise, curves.decode):
        assert curve is not None
        assert curve.work_flops == sorted(set(curve.work_flops)) and curve.work_flops[0] > 0
        assert len(curve.seconds) == len(curve.work_flops) and min(curve.seconds) > 0.0 < curve.factor


def check_models(answer: Answer) -> None:
    info = find_model(MODEL)
    first, *others = answer.stdout.splitlines()
    assert first.startswith(f"{MODEL}  128x128  ") and first.endswith(info.licence)
    assert {line.split()[0] for line in others if line[:1].isalnum()} >= {
        family.name for family in list_families()
    }


def check_check(answer: Answer) -> None:
    assert answer.stdout.splitlines()[-1] == "sound"
    assert re.search(r"^transformer +PixArtTransformer2DModel +9\.09 M ", answer.stdout, re.MULTILINE)


def check_solvers(answer: Answer) -> None:
    names = [line.split()[0] for line in answer.stdout.splitlines() if not line.startswith(" ")]
    assert names == list(SOLVERS)


def check_encode(answer: Answer) -> None:
    tensors = load_file(answer.folder / "apple.safetensors")
    (expected,) = build_text_encoder(find_model(MODEL)).encode(["a red apple"])
    assert tensors.keys() == {"states", "mask"}
    for name, tensor in tensors.items():
        value = getattr(expected, name)
        assert (tensor.squeeze() == value.squeeze()).all(), name


def check_likelihood(answer: Answer) -> None:
    number = r"(-?[\d.]+)"
    prompt, empty = (
        float(re.findall(rf"^ +{number} .*  with the {name}$", answer.stdout, re.MULTILINE)[0])
        for name in ("prompt", "empty prompt")
    )
    (gain,) = re.findall(rf"the prompt explains {number}", answer.stdout)
    (num_dims,) = re.findall(r", (\d+) dimensions;", answer.stdout)
    assert prompt < empty, "a red apple is more probable as a red apple"
    assert float(gain) == pytest.approx((empty - prompt) * int(num_dims) * np.log(2.0), rel=0.02, abs=0.2)


def check_eval(answer: Answer) -> None:
    names = list(read_prompt_sets(find_model(MODEL).path))
    assert re.findall(r"^([\w-]+):$", answer.stdout, re.MULTILINE) == names
    rates = re.findall(r"concept_top1 .*; (\d+) of (\d+)\)", answer.stdout)
    hits, counts = (sum(map(int, column)) for column in zip(*rates, strict=True))
    assert counts == 4 * len(names)
    assert hits >= EVAL_FLOOR * counts


def check_plan(answer: Answer) -> None:
    """By the definitions: seconds are operations over the achieved speed, 312 TFLOPS at half."""
    rows = re.findall(r"^(encode|denoise|decode|total) +([\d.]+) +([\d.]+) ", answer.stdout, re.MULTILINE)
    assert len(rows) == 4
    for _, tflop, seconds in rows:
        assert float(seconds) == pytest.approx(float(tflop) / (0.5 * 312.0), rel=0.005)
    (throughput,) = re.findall(
        r"throughput of one device, images/h +at least 1000 +(\d+) +met", answer.stdout
    )
    assert int(throughput) == pytest.approx(3600.0 / (float(rows[3][1]) / 156.0), rel=0.001)


def check_simulate(answer: Answer) -> None:
    (row,) = re.findall(r"^10 +\d.*%.*$", answer.stdout, re.MULTILINE)[:1]
    _, rate, p50, p95, p99, _, gpus, _, _, lost, _ = row.split()
    (alone,) = re.findall(r"latency of an image alone: ([\d.]+) s", answer.stdout)
    assert int(rate) == pytest.approx(8000, rel=0.05) and int(lost) == 0 and 1 <= int(gpus) <= 10
    assert float(alone) <= float(p50) <= float(p95) <= float(p99)


def apples(prefix: str, count: int, **options: Any) -> tuple[Drawing, ...]:
    return tuple(
        Drawing(f"{prefix}-{k}.png", "a red apple", options | {"n": count}, k, Prompt("", RED_APPLE))
        for k in range(count)
    )


GREEN_APPLE = Drawing("green-apple.png", "a green apple", {"seed": 7}, source="red-apple.png", strength=0.6)
EXPECTATIONS = (
    Expectation(r"client\.images\.edit\(", drawings=(GREEN_APPLE,)),
    Expectation(r"curl .*/v1/images/edits", check_edit),
    Expectation(
        r"stream=True",
        check_stream,
        (Drawing("streamed-apple.png", "a red apple", {"seed": 7}, 0, Prompt("", RED_APPLE)),),
    ),
    Expectation(r'pipeline\.edit\("a green apple"', drawings=(GREEN_APPLE,)),
    Expectation(r'generate "a green apple" --image', check_generate, (GREEN_APPLE,)),
    Expectation(
        r"curl .*/v1/images/generations",
        drawings=(Drawing("apple.png", "a red apple", {"seed": 1}, 0, Prompt("", RED_APPLE)),),
    ),
    Expectation(
        r'generate "noto rocket"',
        check_generate,
        (Drawing("rocket.png", "noto rocket", {"seed": 5}, 0, Prompt("", ROCKET, "noto")),),
    ),
    Expectation(
        r'pipeline\.generate\("a red apple"',
        drawings=(Drawing("red-apple.png", "a red apple", {"seed": 1}, 0, Prompt("", RED_APPLE)),),
    ),
    Expectation(
        r'prompt="a red apple",\n    n=2',
        drawings=apples("apple", 2, seed=7, num_inference_steps=12, guidance_scale=5.0),
    ),
    Expectation(r"curl .*/v1/models$", check_served_models),
    Expectation(r"curl .*/readyz$", check_readiness),
    Expectation(r"curl .*/metrics$", check_metrics),
    Expectation(r"curl .*/v1/accounting\?window=3600&latest=10", check_accounting),
    Expectation(r"curl .*/v1/curve$", check_curve),
    Expectation(
        r'pipeline\.generate\("rocket on a blue',
        check_python_usage,
        tuple(
            Drawing(
                f"rocket-{k}.png",
                "rocket on a blue background",
                {"seed": 5, "n": 2, "num_inference_steps": 12},
                k,
                Prompt("", ROCKET, None, "blue"),
            )
            for k in range(2)
        ),
    ),
    # its seed is random, so one image in ten may show something else: only its colour is judged
    Expectation(r'generate "a red apple" -o', check_generate, (Drawing("red-apple.png", "a red apple"),)),
    Expectation(
        r'generate "umbrella in flat style"',
        drawings=tuple(
            Drawing(
                f"umbrella-{k}.webp",
                "umbrella in flat style",
                {"seed": 3, "n": 2, "num_inference_steps": 12, "solver": "heun", "output_format": "webp"},
                k,
                Prompt("", UMBRELLAS, "flat"),
            )
            for k in range(2)
        ),
    ),
    Expectation(
        r'generate "noto red apple"',
        check_generate_json,
        (
            Drawing(
                "noto-apple.jpeg",
                "noto red apple",
                {"seed": 1, "guidance_scale": 6.0, "negative_prompt": "green", "output_format": "jpeg"},
                0,
                Prompt("", RED_APPLE, "noto"),
            ),
        ),
    ),
    Expectation(r"safelight models$", check_models),
    Expectation(r"safelight check emoji-128$", check_check),
    Expectation(r"safelight solvers$", check_solvers),
    Expectation(r"safelight encode ", check_encode, other_files=("apple.safetensors",)),
    Expectation(r"safelight likelihood red-apple\.png ", check_likelihood),
    Expectation(r"safelight eval --limit 4 ", check_eval),
    Expectation(r"safelight plan ", check_plan),
    Expectation(r"safelight simulate ", check_simulate),
)


def expectation_of(text: str) -> Expectation:
    """The only expectation that matches a command."""
    (expectation,) = (entry for entry in EXPECTATIONS if re.search(entry.pattern, text, re.MULTILINE))
    return expectation
