"""`make gpu`: ten minutes on a GPU, in order of worth. The report and all outputs are in build/gpu."""

import sys
from pathlib import Path

import torch

from tests.gpu.steps import Step, run_steps

OUT = Path("build/gpu")
NO_CUDA = 2
SAFELIGHT = ("{python}", "-m", "safelight.service.cli")
BENCH = (*SAFELIGHT, "bench", "--random-weights")
DEVICE = (
    "import torch; p = torch.cuda.get_device_properties(0); print(p, torch.__version__, torch.version.cuda)"
)
STEPS = (
    Step("device", "the card and the versions", ("{python}", "-c", DEVICE), 30),
    Step(
        "capstone",
        "PixArt-Sigma at 1024x1024: under 5 s alone, 1,000 images an hour",
        (*BENCH, "pixart-sigma", "--in-flight", "1,4", "--no-compile", "--check"),
        90,
    ),
    Step("doctor", "kernels, network and images of the embedded model", (*SAFELIGHT, "doctor"), 75),
    Step(
        "tests",
        "kernels against oracles, batches, queue of ticks, one image over HTTP",
        ("{python}", "-m", "pytest", "tests/gpu", "-k", "cuda", "-rA", "-p", "no:cacheprovider"),
        120,
    ),
    Step(
        "compiled",
        "the capstone with compiled blocks, 1 to 8 in flight",
        (*BENCH, "pixart-sigma", "--json", "--check"),
        150,
    ),
    Step(
        "sd35",
        "SD3.5-medium at 1024x1024",
        (*BENCH, "sd3.5-medium", "--in-flight", "1,2", "--no-compile", "--check"),
        75,
    ),
    Step(
        "engine",
        "the embedded model's mixed requests",
        (*SAFELIGHT, "bench", "--engine-only", "--requests", "40", "--rounds", "1"),
        50,
    ),
)  # fmt: skip


def main() -> int:
    if not torch.cuda.is_available():
        sys.stderr.write("make gpu needs a CUDA device, and torch sees none here: nothing was run\n")
        return NO_CUDA
    words = {"python": sys.executable, "out": str(OUT)}
    results = run_steps(STEPS, OUT, words, _say)
    sys.stdout.write((OUT / "report.md").read_text())
    return int(any(result.status != 0 for result in results))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
