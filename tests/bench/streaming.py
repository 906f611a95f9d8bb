"""Measures what previews cost in throughput, and how early the first one comes.

    python -m tests.bench.streaming [--model M] [--images N] [--rounds N] [--json]

The three stages run in this process. In turns, N images are drawn eight at a time, without previews and with
two of each; then images alone, with two previews. Nothing else should run on the machine.
The exit status is 1 if a figure misses its bar.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Any

from rich.progress import track

from safelight.pipeline.benchmark.bars import STREAMING_BARS
from safelight.pipeline.benchmark.machine import identify_machine
from safelight.pipeline.benchmark.record import benchmark_record
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.params import GenerationParams, PreviewRequest
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import NO_CONTEXT, ImageFormat, Preview
from safelight.service.previews import CallbackSink
from safelight.service.settings import Settings
from tests.bench.verdicts import print_verdicts

NUM_PREVIEWS = 2
IN_FLIGHT = 8


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji-128", help="default %(default)s")
    parser.add_argument("--images", type=int, default=24, help="of each kind in a round; default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="the record on stdout; verdicts on stderr")
    args = parser.parse_args()
    settings = Settings(model=args.model)
    pipeline = InProcessPipeline(find_model(args.model), settings)
    pipeline.wait()
    figures = asyncio.run(measure(pipeline, find_model(args.model), args.images, args.rounds))
    pipeline.close()
    machine = identify_machine()
    record = benchmark_record(machine, "python -m tests.bench.streaming", figures)
    print(json.dumps(record if args.json else figures, indent=1))
    return print_verdicts(STREAMING_BARS, figures, machine)


async def measure(
    pipeline: InProcessPipeline, model: ModelInfo, num_images: int, rounds: int
) -> dict[str, Any]:
    """The figures of all rounds."""
    await draw_many(pipeline, model, IN_FLIGHT, NUM_PREVIEWS)  # the cost curves learn
    plain, streamed, shares = [], [], []
    drawn = previews = 0
    for _ in track(range(rounds), description="rounds", disable=not sys.stderr.isatty()):
        plain.append(await draw_many(pipeline, model, num_images, 0))
        before = pipeline.decoder.status().previews
        streamed.append(await draw_many(pipeline, model, num_images, NUM_PREVIEWS))
        previews += pipeline.decoder.status().previews - before
        drawn += num_images
        shares += [await first_share(pipeline, model, seed) for seed in range(2)]
    ratios = [with_previews / without for with_previews, without in zip(streamed, plain, strict=True)]
    return {
        "images_per_hour": 3600.0 * num_images / statistics.median(plain),
        "images_per_hour_streamed": 3600.0 * num_images / statistics.median(streamed),
        "throughput_cost": 1.0 - 1.0 / statistics.median(ratios),
        "throughput_costs": [1.0 - 1.0 / ratio for ratio in ratios],
        "previews_per_image": previews / drawn,
        "first_preview_share": statistics.median(shares),
        "first_preview_shares": shares,
    }


async def draw_many(
    pipeline: InProcessPipeline, model: ModelInfo, num_images: int, num_previews: int
) -> float:
    """The seconds that images take of which `IN_FLIGHT` are under way at a time."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def draw(seed: int) -> None:
        async with room:
            sink = CallbackSink(PreviewRequest(num_previews), lambda preview: None)
            await pipeline.generate(
                params_of(model, seed), ImageFormat(), NO_CONTEXT, None, sink if num_previews else None
            )

    started = time.perf_counter()
    await asyncio.gather(*(draw(seed) for seed in range(num_images)))
    return time.perf_counter() - started


async def first_share(pipeline: InProcessPipeline, model: ModelInfo, seed: int) -> float:
    """After which share of its latency an image alone has its first preview."""
    times: list[float] = []

    def note(_: Preview) -> None:
        times.append(time.perf_counter())

    started = time.perf_counter()
    sink = CallbackSink(PreviewRequest(NUM_PREVIEWS), note)
    await pipeline.generate(params_of(model, seed), ImageFormat(), NO_CONTEXT, None, sink)
    latency = time.perf_counter() - started
    return (times[0] - started) / latency if times else 1.0


def params_of(model: ModelInfo, seed: int) -> GenerationParams:
    """An image with the model's defaults."""
    width, height = model.default_size
    prompt = "0" if model.labels else "a red apple"
    return GenerationParams(
        prompt, "", width, height, model.num_steps, model.guidance_scale, model.solver, seed
    )


if __name__ == "__main__":
    sys.exit(main())
