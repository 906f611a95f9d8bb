"""One tick's view of the running samples: gather rows, one forward, one fused update, scatter.

Shapes: S samples, R rows (one or two a sample), C latent channels, H x W latent pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from models.network import Network, Rows
from pipeline.guidance import combine, rescale
from pipeline.request import Sample
from pipeline.solvers import READ, STATE


@dataclass(frozen=True, slots=True)
class Membership:
    """What depends only on which samples run together at which guidance, kept while neither changes.

    `row_sample` (R,) is the sample of each row; `cond_row` and `uncond_row` (S,) are a sample's rows, equal if it has one.
    """

    samples: tuple[Sample, ...]
    scales: tuple[float, ...]
    rows: Rows
    row_sample: Tensor
    cond_row: Tensor
    uncond_row: Tensor
    scale: Tensor  # (S, 1, 1, 1)
    phi: Tensor | None  # (S, 1, 1, 1), guidance rescale; None if nobody asks for it
    read: Tensor  # (S, 7, C, H, W) and the next (S, 5, C, H, W): fresh memory every tick would cost more than the arithmetic
    written: Tensor

    @property
    def steps(self) -> tuple[int, ...]:
        """The tick of each row."""
        return tuple(sample.step_index for sample in self.samples for _ in range(sample.num_rows))

    def holds(self, samples: tuple[Sample, ...]) -> bool:
        """Whether it still describes `samples` at their present ticks."""
        return self.samples == samples and self.scales == _scales(samples)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The samples, stacked: `read` (S, 7, C, H, W) and the update's matrices (S, 5, 7).

    `read` holds what the update reads, in the order of `solvers.READ`; the network's output is yet to come. The new state
    goes to `written` (S, 5, C, H, W).
    """

    read: Tensor
    written: Tensor
    update: Tensor

    @property
    def x(self) -> Tensor:
        """(S, C, H, W)."""
        return self.read[:, 0]


def make_membership(samples: Sequence[Sample], network: Network) -> Membership:
    """Lay out the rows of `samples`: all of a sample's rows stand together."""
    rows_of = [sample.rows for sample in samples]
    row_sample = [index for index, rows in enumerate(rows_of) for _ in rows]
    first = [row_sample.index(index) for index in range(len(samples))]
    device = samples[0].state.device
    phis = [s.params.guidance_rescale if len(rows) == 2 else 0.0 for s, rows in zip(samples, rows_of, strict=True)]
    return Membership(
        samples=tuple(samples),
        scales=_scales(samples),
        rows=network.collate([row for rows in rows_of for row in rows]),
        row_sample=torch.tensor(row_sample, device=device),
        cond_row=torch.tensor(first, device=device),
        uncond_row=torch.tensor([row + len(rows) - 1 for row, rows in zip(first, rows_of, strict=True)], device=device),
        scale=torch.tensor(_scales(samples), device=device)[:, None, None, None],
        phi=torch.tensor(phis, device=device)[:, None, None, None] if any(phis) else None,
        read=torch.zeros(len(samples), len(READ), *samples[0].x.shape, device=device),
        written=torch.empty(len(samples), len(STATE), *samples[0].x.shape, device=device),
    )


def gather(members: Membership) -> Gathered:
    """Stack the state that moves with every tick."""
    samples = members.samples
    read = members.read
    torch.stack([s.state for s in samples], out=read[:, : len(STATE)])
    for index, sample in enumerate(samples):
        if (z := sample.noise()) is not None:
            read[index, READ.index("z")] = z
    return Gathered(
        read=read,
        written=members.written,
        update=torch.stack([s.updates[s.step_index] for s in samples]),
    )


def guided(members: Membership, out: Tensor) -> Tensor:
    """The network's rows (R, C, H, W) to one guided output a sample (S, C, H, W)."""
    cond = out[members.cond_row]
    combined = combine(cond, out[members.uncond_row], members.scale)
    return combined if members.phi is None else rescale(combined, cond, members.phi)


def update(gathered: Gathered, out: Tensor) -> Tensor:
    """The table's update for all samples at once: the new state (S, 5, C, H, W).

    One small matrix a sample, the batch dimension of a batched product. Threads share out whole products; where there are
    fewer products than threads they would share out a product, whose bits are then others, so one thread does it alone.
    """
    gathered.read[:, READ.index("out")] = out
    with nullcontext() if len(out) >= torch.get_num_threads() else _one_thread():
        torch.bmm(gathered.update, gathered.read.flatten(2), out=gathered.written.flatten(2))
    return gathered.written


def scatter(members: Membership, state: Tensor) -> None:
    """Give every sample its new state, a view until the next tick of these members, and move it on by one tick."""
    for sample, own in zip(members.samples, state.unbind(), strict=True):
        sample.state = own
        sample.step_index += 1


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _scales(samples: Sequence[Sample]) -> tuple[float, ...]:
    return tuple(sample.scale for sample in samples)
