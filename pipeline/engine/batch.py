"""The batch of a tick: gather the rows, evaluate the network once, update each group of one shape, scatter.

Shapes: S samples of a group, R rows (one or two a sample), C latent channels, H x W latent pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from safelight.models.device_copies import indices, to_device
from safelight.models.networks.interface import PackedNetwork, Row, Rows
from safelight.pipeline.diffusion.guidance import Guide, combine, rescale
from safelight.pipeline.diffusion.solvers import READ, STATE
from safelight.pipeline.engine.sample import RunningSample


@dataclass(frozen=True, slots=True)
class ShapeGroup:
    """The samples of a batch with latents of one shape, and their rows."""

    samples: tuple[RunningSample, ...]
    row_sample: Tensor  # (R,): the index of each row's sample
    cond_row: Tensor  # (S,): the index of each sample's row with the prompt
    uncond_row: Tensor  # (S,): likewise with the negative prompt; equal to `cond_row` for a sample of one row
    scale: Tensor  # (S, 1, 1, 1): guidance scale
    phi: Tensor | None  # (S, 1, 1, 1): guidance rescale; None if no sample has any
    reuses: Tensor | None  # (S, 1, 1, 1): whether the tick reuses an earlier cond - uncond; None if none does
    keeps: tuple[int, ...]  # indices of the samples whose cond - uncond is kept for a later tick
    # Buffers of `UpdateBuffers`: allocating them at every tick would cost more than the arithmetic.
    read: Tensor
    written: Tensor


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The part of a batch that depends only on its samples and their guidance; kept while neither changes.

    The network's rows are the groups one after another.
    Within a group, rows with texts of one length are contiguous.
    """

    groups: tuple[ShapeGroup, ...]
    guides: tuple[Guide, ...]
    rows: Rows
    row_samples: tuple[RunningSample, ...]  # the sample of each row

    @property
    def samples(self) -> tuple[RunningSample, ...]:
        return tuple(sample for group in self.groups for sample in group.samples)

    @property
    def steps(self) -> tuple[int, ...]:
        """The tick of each row."""
        return tuple(sample.step_index for sample in self.row_samples)

    def matches(self, samples: Sequence[RunningSample]) -> bool:
        """Whether this is the layout of `samples`, in the order of `by_shape`, at their next ticks."""
        return self.samples == tuple(samples) and self.guides == _guides(samples)


@dataclass(frozen=True, slots=True)
class UpdateBuffers:
    """The stacked tensors of a group's update."""

    read: Tensor  # (S, 7, C, H, W): what the update reads, in the order of `solvers.READ`
    written: Tensor  # (S, 5, C, H, W): the new state
    update: Tensor  # (S, 5, 7): the matrices

    @property
    def x(self) -> Tensor:
        """The latents (S, C, H, W)."""
        return self.read[:, 0]


def by_shape(samples: Iterable[RunningSample]) -> list[RunningSample]:
    """`samples` in batch order: sorted by the shape of their latents, otherwise in their given order."""
    return sorted(samples, key=lambda sample: sample.x.shape)


def make_layout(samples: Sequence[RunningSample], network: PackedNetwork) -> BatchLayout:
    """Lay out the rows of `samples`, which are in the order of `by_shape`."""
    groups: list[ShapeGroup] = []
    rows: list[tuple[RunningSample, Row]] = []
    for _, same_shape in groupby(samples, key=lambda sample: sample.x.shape):
        group, group_rows = _make_group(tuple(same_shape))
        groups.append(group)
        rows += group_rows
    return BatchLayout(
        groups=tuple(groups),
        guides=_guides(samples),
        rows=network.collate(
            [row for _, row in rows], [(sample.x.shape[1], sample.x.shape[2]) for sample, _ in rows]
        ),
        row_samples=tuple(sample for sample, _ in rows),
    )


def _make_group(samples: tuple[RunningSample, ...]) -> tuple[ShapeGroup, list[tuple[RunningSample, Row]]]:
    """The group of `samples`, and its rows in order, each with its sample."""
    rows = [
        (index, row_number, row)
        for index, sample in enumerate(samples)
        for row_number, row in enumerate(sample.rows)
    ]
    rows.sort(key=lambda entry: entry[2].text_tokens)  # stable
    position = {(index, row_number): k for k, (index, row_number, _) in enumerate(rows)}
    device, shape = samples[0].state.device, samples[0].x.shape
    guides = _guides(samples)
    reuses = [guide.reuses for guide in guides]
    phis = [
        sample.params.guidance_rescale if guide.mixes else 0.0
        for sample, guide in zip(samples, guides, strict=True)
    ]
    num_samples = len(samples)
    group = ShapeGroup(
        samples=samples,
        row_sample=indices([index for index, _, _ in rows], device),
        cond_row=indices([position[index, 0] for index in range(num_samples)], device),
        uncond_row=indices(
            [position[index, len(sample.rows) - 1] for index, sample in enumerate(samples)], device
        ),
        scale=_by_sample([guide.scale for guide in guides], device),
        phi=_by_sample(phis, device) if any(phis) else None,
        reuses=_by_sample(reuses, device) if any(reuses) else None,
        keeps=tuple(
            index
            for index, sample in enumerate(samples)
            if len(sample.rows) == 2 and sample.params.guidance_stride > 1
        ),
        read=torch.zeros(num_samples, len(READ), *shape, device=device),
        written=torch.empty(num_samples, len(STATE), *shape, device=device),
    )
    return group, [(samples[index], row) for index, _, row in rows]


def _by_sample(values: Sequence[float | bool], device: torch.device) -> Tensor:
    """One value for each sample, (S, 1, 1, 1), on `device`."""
    return to_device(torch.tensor(values), device)[:, None, None, None]


def gather(group: ShapeGroup) -> UpdateBuffers:
    """Stack what changes with every tick; the network's output is filled in by `update`."""
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
    """Combine the network's rows (R, C, H, W) to one guided output a sample (S, C, H, W)."""
    cond, uncond = out[group.cond_row], out[group.uncond_row]
    if group.reuses is not None:
        differences = torch.stack([_stored_difference(sample) for sample in group.samples])
        uncond = torch.where(group.reuses, cond - differences, uncond)
    for index in group.keeps:
        group.samples[index].difference = cond[index] - uncond[index]
    combined = combine(cond, uncond, group.scale)
    return combined if group.phi is None else rescale(combined, cond, group.phi)


def _stored_difference(sample: RunningSample) -> Tensor:
    """The stored cond - uncond difference (C, H, W), or zeros if this tick computes its own."""
    if not sample.guide.reuses:
        return torch.zeros_like(sample.x)
    assert sample.difference is not None
    return sample.difference


def update(buffers: UpdateBuffers, out: Tensor) -> Tensor:
    """Apply the solver table to outputs (S, C, H, W) of all samples at once: the new state (S, 5, C, H, W).

    It is a batched product of one small matrix per sample, and threads divide the products among themselves.
    With fewer products than threads they would split products, which changes bits, so one thread does all.
    """
    buffers.read[:, READ.index("out")] = out
    is_split = out.device.type == "cpu" and len(out) < torch.get_num_threads()
    with _one_thread() if is_split else nullcontext():
        torch.bmm(buffers.update, buffers.read.flatten(2), out=buffers.written.flatten(2))
    return buffers.written


def restore_sources(group: ShapeGroup, state: Tensor) -> Tensor:
    """Put the sources of inpainting samples back into x outside their masks: `state`, changed in place.

    They are noised to the time of the new x, with the noise from which the sample started (RePaint, Lugmayr
    et al. 2022, arXiv:2201.09865, eq. 8, without its resampling).
    """
    for index, sample in enumerate(group.samples):
        if sample.source is not None and sample.source.redraw is not None:
            level = sample.plan.levels[sample.step_index + 1]
            state[index, 0] = sample.source.restore(state[index, 0], level)
    return state


def scatter(group: ShapeGroup, state: Tensor) -> None:
    """Advance every sample by one tick. Its state is a view of `state`, valid until the group's next tick."""
    for sample, sample_state in zip(group.samples, state.unbind(), strict=True):
        sample.state = sample_state
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
