"""Noise: every seed, image and draw has its own, and all of it is standard normal."""

import itertools

import torch

from safelight.pipeline.diffusion import noise


def test_no_two_draws_are_equal() -> None:
    """Among them are those of which a sum, a product or an exchange would make one."""
    numbers = [0, 1, 2, 3, 2**32, 2**53 - 1]
    draws = [noise.draw(*integers, (4,)) for integers in itertools.product(numbers, numbers, numbers)]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(numbers) ** 3


def test_draws_are_standard_normal() -> None:
    """By the moments of a million numbers; those of normal numbers are 0, 1, 0 and 3."""
    x = torch.stack([noise.draw(seed, 0, 0, (1000,)) for seed in range(1000)]).double()
    moments = [float((x**k).mean()) for k in (1, 2, 3, 4)]
    torch.testing.assert_close(moments, [0.0, 1.0, 0.0, 3.0], atol=0.05, rtol=0)


def test_a_draw_does_not_change() -> None:
    """An image can be had again from its seed only while its noise keeps its bits."""
    golden = [-1.2800569534301758, -0.12903667986392975, -0.5601571798324585, 0.5911914706230164]
    assert noise.draw(7, 1, 2, (4,)).tolist() == golden
