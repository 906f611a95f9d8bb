"""One tick's view of the running samples: gather rows, one forward, a fused update for each shape of latents, scatter.

Shapes: S samples of a group, R rows (one or two a sample), C latent channels, H x W latent pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from safelight.models.networks.interface import PackedNetwork, Row, Rows
from safelight.pipeline.diffusion.guidance import Guide, combine, rescale
from safelight.pipeline.diffusion.solvers import READ, STATE
from safelight.pipeline.engine.sample import RunningSample


@dataclass(frozen=True, slots=True)
class ShapeGroup:
    """Samples with latents of one shape, and their rows in a batch.

    `row_sample` (R,) is the sample of each row; `cond_row` and `uncond_row` (S,) are a sample's rows, equal if it has one.
    """

    samples: tuple[RunningSample, ...]
    row_sample: Tensor
    cond_row: Tensor
    uncond_row: Tensor
    scale: Tensor  # (S, 1, 1, 1)
    phi: Tensor | None  # (S, 1, 1, 1), guidance rescale; None if nobody asks for it
    reuses: (
        Tensor | None
    )  # (S, 1, 1, 1), whose tick takes an earlier difference of its predictions; None if nobody's
    keeps: tuple[int, ...]  # the samples of which a later tick will
    read: Tensor  # (S, 7, C, H, W) and the next (S, 5, C, H, W): fresh memory every tick would cost more than the arithmetic
    written: Tensor


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """What depends only on which samples run together at which guidance, kept while neither changes.

    Groups follow one another in the network's rows; within one, rows whose texts are of one length stand together.
    """

    groups: tuple[ShapeGroup, ...]
    guides: tuple[Guide, ...]
    rows: Rows
    row_samples: tuple[RunningSample, ...]  # of all rows

    @property
    def samples(self) -> tuple[RunningSample, ...]:
        return tuple(sample for group in self.groups for sample in group.samples)

    @property
    def steps(self) -> tuple[int, ...]:
        """The tick of each row."""
        return tuple(sample.step_index for sample in self.row_samples)

    def matches(self, samples: Sequence[RunningSample]) -> bool:
        """Whether it still describes `samples`, in the order in which its groups have them, at their present ticks."""
        return self.samples == tuple(samples) and self.guides == _guides(samples)


@dataclass(frozen=True, slots=True)
class UpdateBuffers:
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


def by_shape(samples: Iterable[RunningSample]) -> list[RunningSample]:
    """`samples` in the order in which a batch has them: those with latents of one shape together, each shape in order of arrival."""
    return sorted(samples, key=lambda sample: sample.x.shape)


def make_layout(samples: Sequence[RunningSample], network: PackedNetwork) -> BatchLayout:
    """Lay out the rows of `samples`, which are in the order of `by_shape`."""
    laid_out = [_lay_out(tuple(own)) for _, own in groupby(samples, key=lambda sample: sample.x.shape)]
    rows = [row for _, own in laid_out for row in own]
    return BatchLayout(
        groups=tuple(group for group, _ in laid_out),
        guides=_guides(samples),
        rows=network.collate(
            [row for _, row in rows], [(sample.x.shape[1], sample.x.shape[2]) for sample, _ in rows]
        ),
        row_samples=tuple(sample for sample, _ in rows),
    )


def _lay_out(samples: tuple[RunningSample, ...]) -> tuple[ShapeGroup, list[tuple[RunningSample, Row]]]:
    """The group of `samples`, and its rows with their samples."""
    every = [
        (index, which, row) for index, sample in enumerate(samples) for which, row in enumerate(sample.rows)
    ]
    every.sort(key=lambda one: one[2].text_tokens)  # stable
    place = {(index, which): position for position, (index, which, _) in enumerate(every)}
    device = samples[0].state.device
    guides = _guides(samples)
    phis = [
        sample.params.guidance_rescale if guide.mixes else 0.0
        for sample, guide in zip(samples, guides, strict=True)
    ]
    reuses = [guide.reuses for guide in guides]
    group = ShapeGroup(
        samples=samples,
        row_sample=torch.tensor([index for index, _, _ in every], device=device),
        cond_row=torch.tensor([place[index, 0] for index in range(len(samples))], device=device),
        uncond_row=torch.tensor(
            [place[index, len(sample.rows) - 1] for index, sample in enumerate(samples)], device=device
        ),
        scale=torch.tensor([guide.scale for guide in guides], device=device)[:, None, None, None],
        phi=torch.tensor(phis, device=device)[:, None, None, None] if any(phis) else None,
        reuses=torch.tensor(reuses, device=device)[:, None, None, None] if any(reuses) else None,
        keeps=tuple(
            index
            for index, sample in enumerate(samples)
            if len(sample.rows) == 2 and sample.params.guidance_stride > 1
        ),
        read=torch.zeros(len(samples), len(READ), *samples[0].x.shape, device=device),
        written=torch.empty(len(samples), len(STATE), *samples[0].x.shape, device=device),
    )
    return group, [(samples[index], row) for index, _, row in every]


def gather(group: ShapeGroup) -> UpdateBuffers:
    """Stack the state that moves with every tick."""
    samples, read = group.samples, group.read
    torch.stack([s.state for s in samples], out=read[:, : len(STATE)])
    for index, sample in enumerate(samples):
        if (z := sample.noise()) is not None:
            read[index, READ.index("z")] = z
    return UpdateBuffers(
        read=read,
        written=group.written,
        update=torch.stack([s.updates[s.step_index] for s in samples]),
    )


def guided(group: ShapeGroup, out: Tensor) -> Tensor:
    """The network's rows (R, C, H, W) to one guided output a sample (S, C, H, W)."""
    cond, uncond = out[group.cond_row], out[group.uncond_row]
    if group.reuses is not None:
        uncond = torch.where(
            group.reuses, cond - torch.stack([_last_difference(sample) for sample in group.samples]), uncond
        )
    for index in group.keeps:
        group.samples[index].difference = cond[index] - uncond[index]
    combined = combine(cond, uncond, group.scale)
    return combined if group.phi is None else rescale(combined, cond, group.phi)


def _last_difference(sample: RunningSample) -> Tensor:
    """That its tick takes; anything for one whose tick takes none."""
    if not sample.guide.reuses:
        return torch.zeros_like(sample.x)
    assert sample.difference is not None
    return sample.difference


def update(gathered: UpdateBuffers, out: Tensor) -> Tensor:
    """The table's update for all samples at once: the new state (S, 5, C, H, W).

    One small matrix a sample, the batch dimension of a batched product. Threads share out whole products; where there are
    fewer products than threads they would share out a product, whose bits are then others, so one thread does it alone.
    """
    gathered.read[:, READ.index("out")] = out
    with nullcontext() if len(out) >= torch.get_num_threads() else _one_thread():
        torch.bmm(gathered.update, gathered.read.flatten(2), out=gathered.written.flatten(2))
    return gathered.written


def scatter(group: ShapeGroup, state: Tensor) -> None:
    """Give every sample its new state, a view until the next tick of these members, and move it on by one tick."""
    for sample, own in zip(group.samples, state.unbind(), strict=True):
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


def _guides(samples: Sequence[RunningSample]) -> tuple[Guide, ...]:
    return tuple(sample.guide for sample in samples)
