"""What the three training stages share: bfloat16 forwards over float32 masters, averaging, exact resumption."""

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

DECAY = 0.2  # of a run, its end


def bfloat16_copies(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of `module` rounded to bfloat16; gradients flow back to the float32 masters."""
    return {name: p.to(torch.bfloat16) for name, p in module.named_parameters()}


def warmup_cosine(step: int, num_steps: int, warmup: int) -> float:
    """Learning-rate factor: linear from 0 over `warmup` steps, then half a cosine down to 0.02."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def warmup_stable_decay(step: int, num_steps: int, warmup: int) -> float:
    """Learning-rate factor: linear from 0 over `warmup` steps, 1, then 1 - sqrt down to 0 over the last fifth.

    Until the last fifth nothing depends on `num_steps`, so a run may be lengthened as long as it pays
    (Hägele et al. 2024, arXiv:2405.18392).
    """
    decay = num_steps * DECAY
    return warmup_stable(step, num_steps, warmup) * one_minus_sqrt(step, num_steps, num_steps - decay)


def warmup_stable(step: int, num_steps: int, warmup: int) -> float:
    """Learning-rate factor: linear from 0 over `warmup` steps, then 1."""
    return min(1.0, (step + 1) / warmup)


def one_minus_sqrt(step: int, num_steps: int, first: float) -> float:
    """Learning-rate factor: 1 until step `first`, then 1 - sqrt down to 0 at `num_steps`."""
    return 1.0 - math.sqrt(max(0.0, step - first) / (num_steps - first))


class Average:
    """Exponential moving average of a module's parameters (float32, warmed up so that early steps count)."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in module.named_parameters():
            self.shadow[name].lerp_(p, 1.0 - decay)


class FilterMuon(torch.optim.Muon):
    """Muon (orthogonalised momentum) for convolutions: each filter bank is the matrix (out, kh x kw x in) of its columns.

    The matrices are views of `filters` (4-D parameters in the channels-last layout), so whatever loads or averages the
    parameters goes on working; only gradients are handed over.
    """

    def __init__(self, filters: Iterable[nn.Parameter], **options: Any):
        self._filters = list(filters)
        super().__init__([nn.Parameter(_as_matrix(p.data)) for p in self._filters], **options)

    def step(self, closure: None = None) -> None:
        for p, matrix in zip(self._filters, self.param_groups[0]["params"], strict=True):
            if p.data_ptr() != matrix.data_ptr():
                raise RuntimeError("a filter was moved: its matrix is no view of it any more")
            matrix.grad = None if p.grad is None else _as_matrix(p.grad)
        super().step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for p in self._filters:
            p.grad = None


@dataclass
class TrainingRun:
    """One resumable training run: everything that decides its next step is in `checkpoint`."""

    name: str
    module: nn.Module
    optimisers: list[torch.optim.Optimizer]
    average: Average
    num_steps: int
    checkpoint: Path
    warmup: int = 100
    schedule: Callable[[int, int, int], float] = warmup_cosine
    save_every_s: float = 60.0

    def train(self, loss_of_step: Callable[[int, torch.Generator], Tensor], seed: int) -> None:
        """Step until `num_steps`; `loss_of_step(step, generator)` draws its batch from the generator alone.

        The generator is seeded from (seed, step), so an interrupted run goes on exactly as if it had not been.
        """
        first = self._resume()
        base_rates = [[group["initial_lr"] for group in o.param_groups] for o in self.optimisers]
        started, saved, smooth = time.monotonic(), time.monotonic(), None
        with _progress() as bar:
            task = bar.add_task(self.name, total=self.num_steps, completed=first, loss="")
            for step in range(first, self.num_steps):
                factor = self.schedule(step, self.num_steps, self.warmup)
                for optimiser, rates in zip(self.optimisers, base_rates, strict=True):
                    for group, rate in zip(optimiser.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                loss = loss_of_step(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
                loss.backward()
                nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
                for optimiser in self.optimisers:
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)
                self.average.update(self.module, step)
                smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
                bar.update(task, advance=1, loss=f"loss {smooth:.4f}")
                if time.monotonic() - saved > self.save_every_s or step + 1 == self.num_steps:
                    self._save(step + 1)
                    saved = time.monotonic()
                    print(
                        f"{self.name}: step {step + 1}/{self.num_steps} loss {smooth:.4f} after {saved - started:.0f} s",
                        flush=True,
                    )

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
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group.setdefault("initial_lr", group["lr"])
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average.shadow = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return int(state["step"])


def _as_matrix(filters: Tensor) -> Tensor:
    return filters.permute(0, 2, 3, 1).flatten(1)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
