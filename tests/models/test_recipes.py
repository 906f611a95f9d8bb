"""The recipe's parts that can be wrong in silence: objectives, holdouts, captions, exact resumption."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.recipes import objectives
from models.recipes.emoji.captions import MAX_KEYWORDS, STYLES, Concept, sample_caption, styled
from models.recipes.emoji.data import Picture, composite
from models.recipes.emoji.evaluate import rate
from models.recipes.emoji.training import Average, Run, bfloat16_copies, warmup_cosine

APPLE = Concept("1f34e", "red apple", ("fruit", "healthy", "mac", "school"))


def test_flow_path_and_loss() -> None:
    x0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    x = objectives.flow_sample(x0, eps, torch.tensor([0.0, 1.0]))
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[1], eps[1])
    assert float(objectives.flow_matching_loss(eps - x0, x0, eps)) == 0.0
    assert float(objectives.flow_matching_loss(eps - x0 + 2.0, x0, eps)) == pytest.approx(4.0, rel=1e-5)
    # the target is the path's slope, so a small step along it stays on the path
    between = objectives.flow_sample(x0, eps, torch.tensor([0.3, 0.3]))
    torch.testing.assert_close(between + 0.2 * (eps - x0), objectives.flow_sample(x0, eps, torch.tensor([0.5, 0.5])))


def test_times_are_logit_normal() -> None:
    logits = torch.logit(objectives.logit_normal_times(20_000, torch.Generator().manual_seed(0)))
    assert float(logits.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(logits.std()) == pytest.approx(1.0, abs=0.03)


def test_the_holdout_is_the_written_rule() -> None:
    held = [Picture(Concept(f"{code:x}", "x", ()), style).held_out_from_dit for code in range(0x1F300, 0x1F600) for style in STYLES]
    assert sum(held) / len(held) == pytest.approx(1 / 20, abs=0.012)
    expected = int.from_bytes(hashlib.sha256(b"1f34e/3d").digest(), "big") % 20 == 0
    assert Picture(APPLE, "3d").held_out_from_dit == expected


def test_captions_name_the_concept_and_only_its_own_style() -> None:
    rng = random.Random(0)
    captions = {sample_caption(APPLE, "flat", rng) for _ in range(2000)}
    assert {"red apple", "a red apple", "flat red apple"} <= captions
    assert not any("3d" in c or "noto" in c for c in captions)
    for caption in captions:
        words = set(caption.replace(",", "").split())
        assert words & {"red", "fruit", "healthy", "mac", "school"}
        assert len(words & set(APPLE.keywords)) <= MAX_KEYWORDS
    assert styled("rocket", "3d") == "3d rocket"


def test_composite_is_straight_alpha() -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    assert composite(rgba, (0, 0, 250)).tolist() == [[[200, 100, 0], [0, 0, 250], [40, 20, 200]]]


def test_learning_rate_rises_then_falls() -> None:
    factors = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.02, abs=0.01)


def train(folder: Path, *stops: int) -> dict[str, dict[str, torch.Tensor]]:
    """Train 6 steps, in as many runs as there are `stops`, each starting from nothing but the checkpoint."""
    folder.mkdir()
    for stop in stops:
        torch.manual_seed(0)
        net = nn.Linear(4, 2)
        run = Run("toy", net, [torch.optim.AdamW(net.parameters(), lr=0.1)], Average(net, 0.9), 6, folder / "toy.ckpt", 2, save_every_s=0.0)

        def loss(step: int, generator: torch.Generator, net: nn.Linear = net, stop: int = stop) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return net(torch.randn(8, 4, generator=generator)).square().mean()

        try:
            run.train(loss, seed=5)
        except KeyboardInterrupt:
            continue
    return torch.load(folder / "toy.ckpt", weights_only=True)


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    whole, parts = train(tmp_path / "whole", 6), train(tmp_path / "parts", 2, 3, 6)
    assert whole["step"] == parts["step"] == 6
    for name in whole["module"]:
        assert torch.equal(whole["module"][name], parts["module"][name])
        assert torch.equal(whole["average"][name], parts["average"][name])


def test_gradients_reach_the_float32_masters() -> None:
    net = nn.Linear(4, 2)
    torch.func.functional_call(net, bfloat16_copies(net), (torch.ones(1, 4, dtype=torch.bfloat16),)).float().sum().backward()
    assert net.weight.grad is not None
    assert net.weight.grad.dtype == torch.float32
    assert torch.equal(net.bias.grad, torch.ones(2))


def test_wilson_interval() -> None:
    got = rate([True] * 20 + [False] * 80)
    assert (got["rate"], got["low"], got["high"]) == (0.2, pytest.approx(0.1334, abs=1e-3), pytest.approx(0.2888, abs=1e-3))
