"""Sharpness and chroma of images whose values are known."""

import numpy as np
import pytest

from safelight.pipeline.evaluation.detail import detail_scores


def test_a_plain_image_has_neither_detail_nor_colour() -> None:
    scores = detail_scores(np.full((3, 8, 8, 3), 200, np.uint8))
    assert (scores["sharpness"].value, scores["chroma"].value) == pytest.approx((0.0, 0.0), abs=1e-4)
    assert scores["sharpness"].count == 3


def test_stripes_have_the_sharpness_of_their_step_in_one_direction() -> None:
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[:, :, ::2] = 100
    scores = detail_scores(image)
    assert scores["sharpness"].value == pytest.approx(50.0, rel=1e-4)  # 100 across, 0 down
    assert scores["chroma"].value == 0.0


def test_a_blurred_image_is_less_sharp_and_a_faded_one_has_less_chroma() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    blurred = ((image.astype(np.uint16) + np.roll(image, 1, axis=2)) // 2).astype(np.uint8)
    faded = (image // 2 + 64).astype(np.uint8)
    original = detail_scores(image)
    assert detail_scores(blurred)["sharpness"].value < 0.9 * original["sharpness"].value
    assert detail_scores(faded)["chroma"].value == pytest.approx(original["chroma"].value / 2, rel=0.02)
