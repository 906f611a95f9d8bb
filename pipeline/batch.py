"""One tick's view of the running samples: gather rows, one forward, one fused update, scatter.

Shapes: S samples, R rows (one or two a sample), C latent channels, H x W latent pixels, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.dit import Modulations, TextKeyValues
from pipeline.guidance import combine
from pipeline.request import Sample
from pipeline.solvers import COLUMNS


@dataclass(frozen=True, slots=True)
class Membership:
    """What depends only on which samples run together, kept while nobody joins or leaves.

    `row_sample` (R,) is the sample of each row; `cond_row` and `uncond_row` (S,) are a sample's rows, equal if it has one.
    """

    samples: tuple[Sample, ...]
    text: TextKeyValues
    row_sample: Tensor
    cond_row: Tensor
    uncond_row: Tensor
    scale: Tensor  # (S, 1, 1, 1)

    @property
    def num_rows(self) -> int:
        return len(self.row_sample)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The samples' state, stacked: x, y, z (S, C, H, W), ring (S, 3, C, H, W), coefficients (S, 16), modulations of rows."""

    x: Tensor
    y: Tensor
    z: Tensor
    ring: Tensor
    coefficients: Tensor
    modulations: Modulations


def make_membership(samples: Sequence[Sample]) -> Membership:
    """Lay out the rows of `samples`: all of a sample's rows stand together."""
    row_sample = [index for index, sample in enumerate(samples) for _ in sample.texts]
    first = [row_sample.index(index) for index in range(len(samples))]
    texts = [text for sample in samples for text in sample.texts]
    device = samples[0].x.device
    return Membership(
        samples=tuple(samples),
        text=TextKeyValues(torch.cat([t.kv for t in texts], dim=2), torch.cat([t.mask for t in texts])),
        row_sample=torch.tensor(row_sample, device=device),
        cond_row=torch.tensor(first, device=device),
        uncond_row=torch.tensor([row + sample.num_rows - 1 for row, sample in zip(first, samples, strict=True)], device=device),
        scale=torch.tensor([s.params.guidance_scale for s in samples], device=device)[:, None, None, None],
    )


def gather(members: Membership) -> Gathered:
    """Stack the state that moves with every tick."""
    samples = members.samples
    x = torch.stack([s.x for s in samples])
    drawn = [s.noise() for s in samples]
    blocks = torch.stack([s.modulations.blocks[s.step_index] for s in samples])
    final = torch.stack([s.modulations.final[s.step_index] for s in samples])
    return Gathered(
        x=x,
        y=torch.stack([s.y for s in samples]),
        z=torch.stack([torch.zeros_like(s.x) if z is None else z for s, z in zip(samples, drawn, strict=True)]),
        ring=torch.stack([s.ring for s in samples]),
        coefficients=torch.stack([s.coefficients[s.step_index] for s in samples]),
        modulations=Modulations(blocks[members.row_sample], final[members.row_sample]),
    )


def guided(members: Membership, out: Tensor) -> Tensor:
    """The network's rows (R, C, H, W) to one guided output a sample (S, C, H, W)."""
    return combine(out[members.cond_row], out[members.uncond_row], members.scale)


def update(state: Gathered, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The table's update for all samples at once: new x, y (S, C, H, W) and ring (S, 3, C, H, W).

    Only products and sums of single elements, in one order: no sample can feel another.
    """
    k = dict(zip(COLUMNS, state.coefficients[:, :, None, None, None].unbind(1), strict=True))
    m = (k["p"] * state.x + k["q"] * out, *state.ring.unbind(1))
    x = k["a"] * state.x + k["s"] * state.y + k["c"] * state.z
    y = k["d"] * state.x + k["e"] * state.y
    for j, value in enumerate(m):
        x = x + k[f"b{j}"] * value
        y = y + k[f"f{j}"] * value
    pushed = torch.stack(m[:-1], dim=1)
    return x, y, torch.where(k["push"][:, :, None] > 0, pushed, state.ring)


def scatter(members: Membership, x: Tensor, y: Tensor, ring: Tensor) -> None:
    """Give every sample its new state and move it on by one tick."""
    for sample, sample_x, sample_y, sample_ring in zip(members.samples, x, y, ring, strict=True):
        sample.x, sample.y, sample.ring = sample_x, sample_y, sample_ring
        sample.step_index += 1
