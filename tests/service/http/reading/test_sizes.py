"""The nearest served size: by aspect ratio, then by area."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.service.errors import InvalidRequest
from safelight.service.http.reading.sizes import MAX_SIDE, nearest_size, read_ratio, read_size
from tests.fakes import MODEL

SIZES = ((1024, 1024), (512, 512), (1344, 768), (768, 1344), (1536, 640))
BUCKETS = replace(MODEL, sizes=SIZES)
SIDES = st.integers(1, MAX_SIDE)


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ((512, 512), (512, 512)),
        ((600, 600), (512, 512)),
        ((900, 900), (1024, 1024)),
        ((1, 1), (512, 512)),
        ((16384, 16384), (1024, 1024)),
        ((1536, 1024), (1344, 768)),  # 1.5: nearer to 1.75 than to 1 and 2.4
        ((1024, 1536), (768, 1344)),
        ((2048, 858), (1536, 640)),
        ((1010, 1000), (1024, 1024)),  # the aspect ratio counts before the area
        ((300, 40), (1536, 640)),
    ],
)
def test_the_nearest_size(asked: tuple[int, int], used: tuple[int, int]) -> None:
    assert nearest_size(*asked, BUCKETS, "size") == used


@given(SIDES, SIDES)
def test_no_served_size_has_a_nearer_aspect_ratio(width: int, height: int) -> None:
    def distance(size: tuple[int, int]) -> float:
        ratios = size[0] / size[1], width / height
        return max(ratios) / min(ratios)

    size = nearest_size(width, height, BUCKETS, "size")
    assert all(distance(size) <= distance(other) * (1 + 2e-6) for other in SIZES)


@given(st.sampled_from(SIZES))
def test_a_served_size_is_itself(size: tuple[int, int]) -> None:
    assert nearest_size(*size, BUCKETS, "size") == size


@pytest.mark.parametrize("sides", [(0, 8), (8, 0), (-1, 8), (MAX_SIDE + 1, 8), (8, 1e20), (float("nan"), 8)])
def test_absurd_sides_are_refused(sides: tuple[float, float]) -> None:
    with pytest.raises(
        InvalidRequest, match=r"^height: the sides of an image must be between 1 and 16384"
    ) as error:
        nearest_size(*sides, BUCKETS, "height")
    assert error.value.param == "height"


@pytest.mark.parametrize("value", ["big", "8x", "8x8x8", "1.5x2", None, True, 1.5, [8, 8], "8" * 30])
def test_what_is_no_size_stays_as_it_is(value: object) -> None:
    assert read_size(value, BUCKETS, "size") is value


@pytest.mark.parametrize("value", ["", "  ", "auto", "Auto "])
def test_a_blank_size_is_the_default(value: str) -> None:
    assert read_size(value, BUCKETS, "size") == "auto"


@pytest.mark.parametrize(
    ("ratio", "size"),
    [("1:1", (1024, 1024)), ("16:9", (1344, 768)), (" 9 / 16 ", (768, 1344)), ("21:9", (1536, 640))],
)
def test_a_ratio_is_a_size_with_the_area_of_the_default(ratio: str, size: tuple[int, int]) -> None:
    assert read_ratio(ratio, BUCKETS) == size
    assert read_ratio("1:1", replace(BUCKETS, request_size=(512, 512))) == (512, 512)


@pytest.mark.parametrize("value", ["0:1", "1:0", "16", "wide", 1.78, None, "123456:1"])
def test_what_is_no_ratio(value: object) -> None:
    assert read_ratio(value, BUCKETS) is None
