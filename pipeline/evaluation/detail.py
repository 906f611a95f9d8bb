"""How much detail and how much colour images have, whatever they show.

The nearest clean image is found at 32 x 32 pixels, where smooth or oversaturated images look right.
"""

import numpy as np

from safelight.pipeline.evaluation.clip_score import Mean

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, by ITU-R BT.601


def detail_scores(images: np.ndarray) -> dict[str, Mean]:
    """The mean sharpness and chroma of images (P, H, W, 3) uint8.

    Sharpness is the mean absolute difference of luma between neighbouring pixels; chroma that between the
    largest and the smallest of red, green and blue. Both are in levels, 0 to 255.
    """
    luma = images.astype(np.float32) @ LUMA  # (P, H, W)
    across, down = (np.abs(np.diff(luma, axis=axis)).mean(axis=(1, 2)) for axis in (2, 1))
    chroma = images.max(axis=3).astype(np.float32) - images.min(axis=3)
    return {
        "sharpness": Mean.from_scores((across + down) / 2),
        "chroma": Mean.from_scores(chroma.mean(axis=(1, 2))),
    }
