"""Text encoding: prompts to hidden states, with a cache of recent texts."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from safelight.pipeline.diffusion.guidance import needs_uncond
from safelight.pipeline.params import GenerationParams, StageCost, TextReport
from safelight.pipeline.scheduling.cost_curve import UNKNOWN
from safelight.service.messages import NO_CONTEXT, EncodeResult, RequestContext
from safelight.service.stages.batched_stage import BatchedStage

if TYPE_CHECKING:
    from safelight.pipeline.engine.text_encoder import TextEncoder, TextStates

FREE = StageCost(device_seconds=0.0, flops=0)


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """The texts of one image."""

    params: GenerationParams
    context: RequestContext = NO_CONTEXT
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def texts(self) -> tuple[str, ...]:
        prompt, negative = self.params.prompt, self.params.negative_prompt
        return (prompt, negative) if needs_uncond(self.params.guidance_scale) else (prompt,)


class EncodeStage(BatchedStage["TextEncoder", EncodeJob, EncodeResult]):
    """Hosts a text encoder with a cache; only the first image with a text pays for encoding it.

    Args:
        make_encoder: Loads the text encoder; called on the stage's thread.
        model_id: Part of the cache's key.
        cache_bytes: How many bytes of states the cache holds; the least recently used are dropped.
    """

    def __init__(self, make_encoder: Callable[[], TextEncoder], model_id: str, cache_bytes: int):
        self._model_id = model_id
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        # used by the worker thread only
        self._cache: OrderedDict[tuple[str, str], TextStates] = OrderedDict()
        super().__init__("encode", make_encoder)

    async def encode(self, params: GenerationParams, context: RequestContext = NO_CONTEXT) -> EncodeResult:
        """Encode the texts of one image."""
        return await self.run(EncodeJob(params, context))

    def _process(self, network: TextEncoder, jobs: Sequence[EncodeJob], started: float) -> list[EncodeResult]:
        texts = [text for job in jobs for text in job.texts]
        states, costs = self._look_up(network, texts)
        self._update_counts(len(jobs), hits=len(texts) - len(costs), misses=len(costs))
        results = [_encode_result(job, states, costs, started) for job in jobs]
        for job, result in zip(jobs, results, strict=True):
            self.meter.record_usage(job.context, result.cost)
        return results

    def _look_up(
        self, encoder: TextEncoder, texts: Sequence[str]
    ) -> tuple[dict[str, TextStates], dict[str, StageCost]]:
        """The states of `texts`, and the cost of those that were not in the cache."""
        cached = {text: self._cache[key] for text in texts if (key := (self._model_id, text)) in self._cache}
        missing = [text for text in dict.fromkeys(texts) if text not in cached]
        encoded: dict[str, TextStates] = {}
        for start in range(0, len(missing), encoder.max_batch):
            batch = missing[start : start + encoder.max_batch]
            encoded.update(zip(batch, encoder.encode(batch), strict=True))
        self._update_curve(encoded.values())
        states = cached | encoded
        self._store(states)
        return states, {text: text_states.cost for text, text_states in encoded.items()}

    def _update_curve(self, encoded: Iterable[TextStates]) -> None:
        for states in encoded:
            if states.cost.flops:  # class labels are looked up, not computed
                curve = self._status.curve or UNKNOWN
                curve = curve.updated(states.cost.flops, states.cost.device_seconds)
                self._status = replace(self._status, curve=curve)

    def _store(self, states: dict[str, TextStates]) -> None:
        """Put `states` into the cache as the most recently used, and drop the oldest beyond `cache_bytes`."""
        for text, text_states in states.items():
            key = (self._model_id, text)
            if key not in self._cache:
                self._cache[key] = text_states
                self._cached_bytes += text_states.num_bytes
            self._cache.move_to_end(key)
        while self._cached_bytes > self._cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.num_bytes

    def _update_counts(self, num_images: int, hits: int, misses: int) -> None:
        status = self._status
        self._status = replace(
            status,
            images=status.images + num_images,
            cache_hits=status.cache_hits + hits,
            cache_misses=status.cache_misses + misses,
        )


def _encode_result(
    job: EncodeJob, states: dict[str, TextStates], costs: dict[str, StageCost], started: float
) -> EncodeResult:
    """The result of `job`. Takes the costs of its texts out of `costs`: later jobs get them free."""
    job_states = [states[text] for text in job.texts]
    job_costs = [costs.pop(text, FREE) for text in job.texts]
    return EncodeResult(
        cond=job_states[0],
        uncond=job_states[1] if len(job_states) > 1 else None,
        text=_merge(text_states.report for text_states in job_states),
        cost=StageCost(
            device_seconds=sum(cost.device_seconds for cost in job_costs),
            flops=sum(cost.flops for cost in job_costs),
            queue_seconds=max(0.0, started - job.arrived),
        ),
    )


def _merge(reports: Iterable[TextReport]) -> TextReport:
    """The reports of a prompt and its negative prompt as one."""
    merged = list(reports)
    return TextReport(
        num_tokens=sum(report.num_tokens for report in merged),
        truncated=any(report.truncated for report in merged),
        unknown_words=tuple(dict.fromkeys(word for report in merged for word in report.unknown_words)),
        prompt_syntax=tuple(dict.fromkeys(mark for report in merged for mark in report.prompt_syntax)),
        corrected_words=tuple(dict.fromkeys(pair for report in merged for pair in report.corrected_words)),
    )
