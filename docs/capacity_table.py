"""Prints the tables of docs/capacity.md from `safelight plan`: `.venv/bin/python docs/capacity_table.py`."""

import io
import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from safelight.service import cli

MODELS = ("pixart-sigma", "sd3-medium", "sd3.5-medium", "sd3.5-large", "flux.1-dev")
GPUS, SHARES, STEPS = ("a100", "h100"), (0.4, 0.5, 0.6), (20, 28)

ML_ENERGY = "[ML.ENERGY v3](https://github.com/ml-energy/leaderboard)"
SANA = "[Sana's table](https://github.com/NVlabs/Sana)"
FAL = "[fal's benchmark](https://github.com/fal-ai/stable-diffusion-benchmarks)"
DIFFUSERS = "[diffusers, fast diffusion](https://huggingface.co/docs/diffusers/tutorials/fast_diffusion)"
XDIT = "[xDiT, FLUX](https://github.com/xdit-project/xDiT/blob/main/docs/performance/flux.md)"
TENSORRT = "[SDXL's TensorRT card](https://huggingface.co/stabilityai/stable-diffusion-xl-1.0-tensorrt)"


@dataclass(frozen=True)
class PublishedTime:
    """The published seconds of one image of 1024x1024 alone, and the MFU that they imply."""

    model: str
    gpu: str
    steps: int
    seconds: float
    mfu: float
    how: str
    source: str


PUBLISHED = (
    PublishedTime("pixart-sigma", "a100", 20, 2.7, 0.33, "eager; steps assumed", SANA),
    PublishedTime("sd3-medium", "a100", 28, 4.4, 0.37, "eager; steps assumed", SANA),
    PublishedTime("sdxl", "a100", 50, 6.5, 0.34, "eager; steps assumed", SANA),
    PublishedTime("sdxl", "a100", 50, 5.933, 0.37, "eager", FAL),
    PublishedTime("sdxl", "a100", 30, 3.31, 0.40, "eager", DIFFUSERS),
    PublishedTime("sdxl", "a100", 30, 3.704, 0.36, "eager", TENSORRT),
    PublishedTime("sdxl", "a100", 50, 5.132, 0.43, "compiled", FAL),
    PublishedTime("sdxl", "a100", 30, 2.54, 0.53, "compiled", DIFFUSERS),
    PublishedTime("sdxl", "a100", 30, 2.742, 0.49, "compiled (TensorRT)", TENSORRT),
    PublishedTime("sdxl", "a100", 50, 4.102, 0.54, "compiled (TensorRT)", FAL),
    PublishedTime("flux.1-dev", "a100", 50, 23.0, 0.52, "steps assumed", SANA),
    PublishedTime("flux.1-schnell", "a100", 4, 2.1, 0.44, "steps assumed", SANA),
    PublishedTime("pixart-sigma", "h100", 20, 1.131, 0.25, "eager", ML_ENERGY),
    PublishedTime("sd3.5-medium", "h100", 28, 3.525, 0.19, "eager", ML_ENERGY),
    PublishedTime("sd3.5-large", "h100", 28, 6.558, 0.27, "eager", ML_ENERGY),
    PublishedTime("flux.1-dev", "h100", 50, 11.64, 0.32, "eager", ML_ENERGY),
    PublishedTime("flux.1-dev", "h100", 28, 6.71, 0.32, "eager", XDIT),
    PublishedTime("flux.1-dev", "h100", 28, 4.30, 0.49, "compiled", XDIT),
)


def run_plan(model: str, gpu: str, steps: int, mfu: float) -> dict:
    """The output of `safelight plan --json`."""
    output = io.StringIO()
    with redirect_stdout(output):
        cli.main(["plan", "--model", model, "--gpu", gpu, "--steps", str(steps), "--mfu", str(mfu), "--json"])
    return json.loads(output.getvalue())


def seconds_table(plans: dict) -> str:
    """Seconds of an image alone and images an hour, for one device."""
    rows = _head("model", "steps", "TFLOP", *(f"{gpu.upper()}, {mfu:.0%}" for gpu in GPUS for mfu in SHARES))
    for model in MODELS:
        for steps in STEPS:
            by_device = [plans[model, gpu, steps, mfu] for gpu in GPUS for mfu in SHARES]
            cells = [
                f"{plan['service_s']:.2f} s, {plan['images_per_hour_per_device']:.0f}/h" for plan in by_device
            ]
            rows.append(_row(f"`{model}`", steps, f"{by_device[0]['tflop_per_image']:.0f}", *cells))
    return "\n".join(rows)


def steps_table(plans: dict) -> str:
    """The most steps within the targets: of an image alone, and of 95 % of images that arrive at random."""
    rows = _head("model", *(f"{gpu.upper()}, {mfu:.0%}" for gpu in GPUS for mfu in SHARES))
    for model in MODELS:
        by_device = [plans[model, gpu, STEPS[0], mfu]["steps_that_meet"] for gpu in GPUS for mfu in SHARES]
        rows.append(_row(f"`{model}`", *(f"{steps['alone']}; {steps['under_load']}" for steps in by_device)))
    return "\n".join(rows)


def published_table() -> str:
    """Published seconds beside those predicted at the row's MFU."""
    rows = _head(
        "model", "device", "steps", "published, s", "implied MFU", "predicted at it, s", "how", "source"
    )
    for published in PUBLISHED:
        plan = run_plan(published.model, published.gpu, published.steps, published.mfu)
        rows.append(
            _row(
                f"`{published.model}`",
                published.gpu.upper(),
                published.steps,
                published.seconds,
                f"{published.mfu:.0%}",
                f"{plan['service_s']:.2f}",
                published.how,
                published.source,
            )
        )
    return "\n".join(rows)


def _head(*names: str) -> list[str]:
    return [_row(*names), "|" + "---|" * len(names)]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def all_plans() -> dict:
    """The plans of the first two tables by model, GPU, steps and MFU."""
    keys = [(model, gpu, steps, mfu) for model in MODELS for gpu in GPUS for steps in STEPS for mfu in SHARES]
    return {key: run_plan(*key) for key in keys}


if __name__ == "__main__":
    plans = all_plans()
    print(seconds_table(plans), steps_table(plans), published_table(), sep="\n\n")
