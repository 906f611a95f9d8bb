"""The size of a model that is nearest to another size. Imports no torch."""

import math
from collections.abc import Sequence

Size = tuple[int, int]  # width and height in pixels


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The one of `sizes` whose aspect ratio is nearest to that of `size`, of several the nearest area.

    Ratios and areas are compared by their logarithms, so that twice and half are equally far.
    """
    width, height = size

    def distance(other: Size) -> tuple[float, float]:
        aspect = math.log(other[0] * height / (other[1] * width))
        area = math.log(other[0] * other[1] / (width * height))
        return round(abs(aspect), 6), abs(area)

    return min(sizes, key=distance)
