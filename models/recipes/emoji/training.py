"""Training loop of all stages: bfloat16 forward passes, float32 parameters, averaging, exact resumption."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.func import functional_call

from safelight.pipeline.assembly.device import fast_dtype

DECAY_SHARE = 0.2  # the share of a run, at its end, over which the rate decays


def bfloat16_copies(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of `module` rounded to bfloat16; gradients flow back to the float32 originals."""
    return {name: p.to(torch.bfloat16) for name, p in module.named_parameters()}


def native_autocast() -> torch.autocast:
    """bfloat16 products on a processor that multiplies it natively; float32 on others, where it is slower."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_dtype() is torch.bfloat16)


def warmup_cosine(step: int, num_steps: int, warmup: int) -> float:
    """Learning-rate factor: linear from 0 over `warmup` steps, then half a cosine down to 0.02."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def warmup_stable_decay(step: int, num_steps: int, warmup: int) -> float:
    """Learning-rate factor: linear from 0 over `warmup` steps, 1, then 1 - sqrt to 0 over the last fifth.

    Before the last fifth nothing depends on `num_steps`, so a run can be extended (Hägele et al. 2024,
    arXiv:2405.18392).
    """
    decay = num_steps * DECAY_SHARE
    return warmup_stable(step, num_steps, warmup) * one_minus_sqrt(step, num_steps, num_steps - decay)


def warmup_stable(step: int, num_steps: int, warmup: int) -> float:
    """Learning-rate factor: linear from 0 over `warmup` steps, then 1."""
    return min(1.0, (step + 1) / warmup)


def one_minus_sqrt(step: int, num_steps: int, first: float) -> float:
    """Learning-rate factor: 1 until step `first`, then 1 - sqrt down to 0 at `num_steps`."""
    return 1.0 - math.sqrt(max(0.0, step - first) / (num_steps - first))


class WeightAverage:
    """Exponential moving average of a module's parameters in float32, with a lower decay in early steps."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in module.named_parameters():
            self.shadow[name].lerp_(p, 1.0 - decay)


def forward_function(module: nn.Module) -> Callable[..., Tensor]:
    """`module` as training calls it: in bfloat16 where the device multiplies it natively, compiled on a GPU.

    On a CPU with bfloat16 the parameters are rounded once a step, which is faster than autocast.
    """
    if fast_dtype() is torch.float32:
        return module
    if next(module.parameters()).is_cuda:
        compiled = torch.compile(module)

        def call(*inputs: Tensor) -> Tensor:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                output: Tensor = compiled(*inputs)
                return output

        return call
    return lambda *inputs: functional_call(module, bfloat16_copies(module), inputs)


@dataclass
class TrainingRun:
    """One resumable training run; `checkpoint` holds all state that its next step depends on.

    It ends at `num_steps`, or when it has run for `minutes`.
    """

    name: str
    module: nn.Module
    optimisers: list[torch.optim.Optimizer]
    average: WeightAverage
    num_steps: int
    checkpoint: Path
    warmup: int = 100
    schedule: Callable[[int, int, int], float] = warmup_cosine
    save_every_s: float = 60.0
    minutes: float = math.inf

    def train(self, loss_of_step: Callable[[int, torch.Generator], Tensor], seed: int) -> None:
        """Train until `num_steps`; `loss_of_step(step, generator)` draws its batch from the generator alone.

        The generator is seeded from (seed, step), so a resumed run gives exactly the result of an
        uninterrupted one.
        """
        # Before `_resume`: a checkpoint's optimisers have the rates of its last step.
        base_rates = [[group["lr"] for group in o.param_groups] for o in self.optimisers]
        first = self._resume()
        start, last_save, smooth = time.monotonic(), time.monotonic(), None
        with _progress() as bar:
            task = bar.add_task(self.name, total=self.num_steps, completed=first, loss="")
            for step in range(first, self.num_steps):
                factor = self.schedule(step, self.num_steps, self.warmup)
                for optimiser, rates in zip(self.optimisers, base_rates, strict=True):
                    for group, rate in zip(optimiser.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                loss = self._step(step, loss_of_step(step, _generator(seed, step)))
                smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
                bar.update(task, advance=1, loss=f"loss {smooth:.4f}")
                is_last = step + 1 == self.num_steps or time.monotonic() - start > 60.0 * self.minutes
                if is_last or time.monotonic() - last_save > self.save_every_s:
                    self._save(step + 1)
                    last_save = time.monotonic()
                    progress = f"step {step + 1}/{self.num_steps} loss {smooth:.4f}"
                    print(f"{self.name}: {progress} after {last_save - start:.0f} s", flush=True)
                if is_last:
                    break

    def _step(self, step: int, loss: Tensor) -> float:
        """Update the parameters and their average; return the loss."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.average.update(self.module, step)
        return loss.item()

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "module": self.module.state_dict(),
            "average": self.average.shadow,
            "optimisers": [o.state_dict() for o in self.optimisers],
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)  # an interruption never leaves half a checkpoint

    def _resume(self) -> int:
        if not self.checkpoint.exists():
            return 0
        device = next(self.module.parameters()).device
        state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average.shadow = state["average"]
        # A checkpoint of given weights has no optimisers: they start afresh.
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=bool(state["optimisers"])):
            optimiser.load_state_dict(saved)
        return int(state["step"])


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
