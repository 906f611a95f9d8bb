"""Text encoding: prompts to states, with a memory of the texts seen last."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from safelight.pipeline.diffusion.guidance import needs_uncond
from safelight.pipeline.params import GenerationParams, StageCost, TextReport
from safelight.pipeline.scheduling.cost_curve import UNKNOWN
from safelight.service.messages import NO_CONTEXT, EncodeResult, RequestContext, StageStatus
from safelight.service.stages.usage_meter import UsageMeter
from safelight.service.stages.worker import Worker

if TYPE_CHECKING:
    from safelight.pipeline.engine.text_encoder import TextEncoder, TextStates

FREE = StageCost(device_seconds=0.0, flops=0)


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """One image's texts, and since when they wait."""

    params: GenerationParams
    context: RequestContext = NO_CONTEXT
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def texts(self) -> tuple[str, ...]:
        prompt, negative = self.params.prompt, self.params.negative_prompt
        return (prompt, negative) if needs_uncond(self.params.guidance_scale) else (prompt,)


class EncodeStage:
    """Hosts a text encoder. A text costs only the image that first brought it; from the cache it is free."""

    def __init__(self, make_encoder: Callable[[], TextEncoder], model_id: str, cache_bytes: int):
        self.books = UsageMeter("encode")
        self._worker = Worker(make_encoder, self.books)
        self._model_id = model_id
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._cache: OrderedDict[tuple[str, str], TextStates] = (
            OrderedDict()
        )  # touched by the worker's thread only
        self._status = StageStatus()

    async def encode(self, params: GenerationParams, context: RequestContext = NO_CONTEXT) -> EncodeResult:
        with self.books.jobs(1):
            return (await self.encode_batch([EncodeJob(params, context)]))[0]

    async def encode_batch(self, jobs: Sequence[EncodeJob]) -> list[EncodeResult]:
        """EncodeResult for each job. That they are here, whoever collects them has put into `books`."""
        return await self._worker.call(lambda encoder: self._encode(encoder, jobs))

    def status(self) -> StageStatus:
        return self._status

    def wait(self) -> None:
        """Until the network is loaded; raises what loading it raised."""
        self._worker.wait()

    def close(self) -> None:
        self._worker.close()

    def _encode(self, encoder: TextEncoder, jobs: Sequence[EncodeJob]) -> list[EncodeResult]:
        started = time.perf_counter()
        texts = [text for job in jobs for text in job.texts]
        known, bills = self._look_up(encoder, texts)
        self._count(len(jobs), hits=len(texts) - len(bills), misses=len(bills))
        answers = [_answer(job, known, bills, started) for job in jobs]
        for job, answer in zip(jobs, answers, strict=True):
            self.books.charge(job.context, answer.cost)
        self.books.took(time.perf_counter() - started, len(jobs))
        return answers

    def _look_up(
        self, encoder: TextEncoder, texts: Sequence[str]
    ) -> tuple[dict[str, TextStates], dict[str, StageCost]]:
        """The states of `texts`, and what the missing ones cost to encode."""
        known = {text: self._cache[key] for text in texts if (key := (self._model_id, text)) in self._cache}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        fresh: dict[str, TextStates] = {}
        curve = self._status.curve or UNKNOWN
        for start in range(0, len(missing), encoder.max_batch):
            batch = missing[start : start + encoder.max_batch]
            fresh.update(zip(batch, encoder.encode(batch), strict=True))
        for states in fresh.values():
            if states.cost.flops:  # the name of a class is looked up, not computed
                curve = curve.updated(states.cost.flops, states.cost.device_seconds)
                self._status = replace(self._status, curve=curve)
        known |= fresh
        self._remember(known)
        return known, {text: states.cost for text, states in fresh.items()}

    def _remember(self, known: dict[str, TextStates]) -> None:
        for text, states in known.items():
            key = (self._model_id, text)
            if key not in self._cache:
                self._cache[key] = states
                self._cached_bytes += states.num_bytes
            self._cache.move_to_end(key)
        while self._cached_bytes > self._cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.num_bytes

    def _count(self, num_images: int, hits: int, misses: int) -> None:
        seen = self._status
        self._status = replace(
            seen,
            images=seen.images + num_images,
            cache_hits=seen.cache_hits + hits,
            cache_misses=seen.cache_misses + misses,
        )


def _answer(
    job: EncodeJob, known: dict[str, TextStates], bills: dict[str, StageCost], started: float
) -> EncodeResult:
    states = [known[text] for text in job.texts]
    costs = [bills.pop(text, FREE) for text in job.texts]
    cost = StageCost(
        sum(c.device_seconds for c in costs), sum(c.flops for c in costs), max(0.0, started - job.arrived)
    )
    return EncodeResult(
        states[0], states[1] if len(states) > 1 else None, _merge(s.report for s in states), cost
    )


def _merge(reports: Iterable[TextReport]) -> TextReport:
    every = list(reports)
    return TextReport(
        num_tokens=sum(report.num_tokens for report in every),
        truncated=any(report.truncated for report in every),
        unknown_words=tuple(dict.fromkeys(word for report in every for word in report.unknown_words)),
    )
