"""Stages `turbo` and `decoder`: the student of few evaluations, and the cheap decoder."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from safelight.models.autoencoders.loading import load_vae
from safelight.models.autoencoders.tiny import AutoencoderTiny
from safelight.models.recipes.emoji import (
    cheap_decoder,
    dit,
    turbo,
    vae,
)
from safelight.pipeline.flops.vae import decode_flops


def test_the_student_times_are_the_trailing_grid() -> None:
    times = turbo.sub_times()
    assert times.shape == (4, 5)
    assert times[:, 0].tolist() == pytest.approx([1.0, 6 / 7, 2 / 3, 0.4])
    assert times[:, -1].tolist() == pytest.approx([6 / 7, 2 / 3, 0.4, 0.0])
    drawn = turbo.draw_intervals(4000, torch.Generator().manual_seed(0)).bincount() / 4000
    assert drawn.tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.03)


def test_the_covering_velocity_leads_where_the_sub_steps_lead() -> None:
    x, times = torch.randn(4, 8, 4, 4), turbo.sub_times()
    constant = turbo.covering_velocity(lambda y, t: torch.full_like(y, 3.0), x, times)
    torch.testing.assert_close(constant, torch.full_like(x, 3.0))

    def decay(y: Tensor, t: Tensor) -> Tensor:
        return y * t[:, None, None, None]

    end = x
    for k in range(4):
        end = end + (times[:, k + 1] - times[:, k])[:, None, None, None] * decay(end, times[:, k])
    span = (times[:, -1] - times[:, 0])[:, None, None, None]
    torch.testing.assert_close(x + span * turbo.covering_velocity(decay, x, times), end)


def test_the_base_is_guided_away_from_the_empty_text() -> None:
    batch = dit.Batch(torch.zeros(2, 8, 4, 4), torch.ones(2, 5, 3), torch.ones(2, 5, dtype=torch.bool))
    empty = (torch.full((1, 2, 3), -1.0), torch.ones(1, 2, dtype=torch.bool))

    def base(x: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        assert timesteps.tolist() == [500.0, 250.0] * 2
        assert mask.sum(1).tolist() == [5, 5, 2, 2]
        return x + states[:, :1, :1, None]

    velocity = turbo.guided(base, batch, empty)(torch.zeros(2, 8, 4, 4), torch.tensor([0.5, 0.25]))
    assert velocity.unique().tolist() == [-1.0 + turbo.GUIDANCE * 2.0]


def test_a_student_that_equals_the_target_has_no_loss() -> None:
    batch = dit.Batch(torch.randn(3, 8, 4, 4), torch.zeros(3, 1, 2), torch.ones(3, 1, dtype=torch.bool))
    student = turbo.loss(
        lambda x, *_: torch.full_like(x, 2.0),
        lambda x, t: torch.full_like(x, 2.0),
        batch,
        torch.Generator().manual_seed(0),
    )
    assert float(student) == pytest.approx(0.0, abs=1e-10)


def test_the_cheap_decoder_takes_a_third_of_the_operations() -> None:
    assert decode_flops(cheap_decoder.options(), 16, 16) <= decode_flops(vae.OPTIONS, 16, 16) / 3


def test_the_cheap_decoder_learns_on_frozen_latents(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "BATCH", 2)
    monkeypatch.setattr(vae, "psnr", lambda *_: 0.0)  # of hundreds of images
    cheap_decoder.run(work, 2)
    present = cheap_decoder.load_present(work)
    cheap = load_vae(work / cheap_decoder.FOLDER, "cpu", torch.float32)
    assert isinstance(cheap, AutoencoderTiny)
    for name, tensor in present.encoder.state_dict().items():
        assert torch.equal(cheap.encoder.state_dict()[name], tensor), name
    torch.manual_seed(0)
    untrained = cheap_decoder.start(present).decoder.state_dict()
    changed = [
        not torch.equal(cheap.decoder.state_dict()[name], tensor) for name, tensor in untrained.items()
    ]
    assert any(changed)
