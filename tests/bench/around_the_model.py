"""Measures core-milliseconds an image by process, over HTTP: what a service spends around its model.

    python -m tests.bench.around_the_model [--images N] [--option=OPTION ...] [--json]

It starts `safelight serve` with the options, draws some images so that everything is warm, and then images of
four evaluations, eight at a time. Processor time hardly depends on what else runs on the machine.
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
from rich.progress import track

from loadtests.core_seconds import CLIENT, CoreClock
from safelight.pipeline.benchmark.machine import identify_machine
from safelight.pipeline.benchmark.record import benchmark_record
from tests.live import serving

IN_FLIGHT = 8
WARM = 24
STEPS = 4
WORDS = ("red apple", "rocket", "umbrella", "green tree", "yellow star", "house", "cat", "blue car")
MODULE = "python -m tests.bench.around_the_model"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200, help="default %(default)s")
    parser.add_argument("--option", action="append", default=[], help="of `safelight serve`")
    parser.add_argument("--json", action="store_true", help="the record on stdout, for docs/data")
    args = parser.parse_args()
    by_name = measure(args.images, args.option)
    rows = [[name, f"{value:.1f}"] for name, value in sorted(by_name.items(), key=lambda item: -item[1])]
    figures = {"tables": [{"columns": ["process", "core-milliseconds an image"], "rows": rows}]}
    record = benchmark_record(identify_machine(), " ".join((MODULE, *args.option)), figures)
    print(json.dumps(record if args.json else figures, indent=1, ensure_ascii=False))
    return 0


def measure(num_images: int, options: list[str]) -> dict[str, float]:
    """Core-milliseconds an image of every process of a service, without those of this one."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), *options) as service:
        _draw(service.url, WARM, "warming up")
        clock = CoreClock(service.process.pid)
        _draw(service.url, num_images, "images")
        by_name = clock.read().by_name
    return {name: 1000.0 * seconds / num_images for name, seconds in by_name.items() if name != CLIENT}


def _draw(url: str, num_images: int, description: str) -> None:
    with httpx2.Client(base_url=url, timeout=120.0) as client, ThreadPoolExecutor(IN_FLIGHT) as executor:

        def draw(number: int) -> None:
            body = {
                "prompt": f"{WORDS[number % len(WORDS)]}",
                "seed": number,
                "num_inference_steps": STEPS,
                "guidance_scale": 1.0,
            }
            client.post("/v1/images/generations", json=body).raise_for_status()

        images = executor.map(draw, range(num_images))
        for _ in track(images, description, num_images, disable=not sys.stderr.isatty()):
            pass


if __name__ == "__main__":
    sys.exit(main())
