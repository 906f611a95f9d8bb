"""The image sizes that a checkpoint serves, from its configurations. No torch is imported here."""

from pathlib import Path

from safelight.models.checkpoints.json_files import CheckpointError, read_json, spatial_compression
from safelight.models.families.spec import Family, PartConfig, read_transformer

Size = tuple[int, int]  # width, height, in pixels

# The aspect ratios of PixArt and SDXL at about the area of 1024 x 1024; other native sides scale them.
BUCKETS: tuple[Size, ...] = (
    (1152, 896),
    (896, 1152),
    (1216, 832),
    (832, 1216),
    (1344, 768),
    (768, 1344),
    (1536, 640),
    (640, 1536),
)
BUCKET_SIDE = 1024
UNBOUNDED = 2**31
MAX_SIDE = 4096  # of a native square, in pixels: twice that of the largest published checkpoint


def list_sizes(family: Family, folder: Path) -> tuple[Size, ...]:
    """The sizes that the checkpoint in `folder` serves: its native square, then its buckets.

    Buckets that are not whole patches, or are larger than a table of positions, are left out.
    Raises `CheckpointError` for a native square that is not whole patches, or is larger than the table or
    `MAX_SIDE` pixels.
    """
    transformer = read_transformer(folder)
    compression = spatial_compression(read_json(folder / "vae" / "config.json"))
    side = _read_number(transformer, "sample_size", family.network.default_sample_size) * compression
    patch = _read_number(transformer, "patch_size", 2) * compression  # in pixels
    # Only networks with a table of positions have a largest size.
    max_length = _read_number(transformer, "pos_embed_max_size", UNBOUNDED) * patch
    if side % patch or side > min(max_length, MAX_SIDE):
        raise CheckpointError(
            f"transformer/config.json: sample_size stands for images of {side} x {side} pixels; "
            f"a side is a multiple of {patch} and at most {min(max_length, MAX_SIDE)}"
        )
    return ((side, side), *_list_buckets(family, side, patch, max_length))


def _list_buckets(family: Family, side: int, patch: int, max_length: int) -> list[Size]:
    """`BUCKETS` scaled to the native `side`, without those that are not whole patches or are too long.

    All lengths are in pixels.
    """
    if not family.has_buckets or side in family.square_only_sides:
        return []
    scaled = [(width * side / BUCKET_SIDE, height * side / BUCKET_SIDE) for width, height in BUCKETS]
    return [
        (int(width), int(height))
        for width, height in scaled
        if max(width, height) <= max_length and not width % patch and not height % patch
    ]


def _read_number(config: PartConfig, key: str, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"transformer/config.json: {key} is {value!r}, expected a positive whole number"
        )
    return value
