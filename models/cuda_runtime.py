"""The CUDA runtime that xformers' wheel wants, in memory before anybody imports xformers: diffusers does so unasked."""

import ctypes
import importlib.util
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

LIBRARY = "libcudart.so.12"  # the wheel was built for CUDA 12, and finds no runtime of it beside a torch for CUDA 13


def preload_cuda_runtime() -> None:
    """Load the library of the extra `cuda`, if it is there, and keep xformers from telling everyone what it cannot load.

    Whether it works is found out by a real call (`safelight.models.packed.xformers_attention`), and told by `safelight doctor`.
    """
    logging.getLogger("xformers").setLevel(logging.ERROR)
    package = importlib.util.find_spec("nvidia.cuda_runtime") if importlib.util.find_spec("nvidia") else None
    for folder in package.submodule_search_locations or () if package else ():
        library = Path(folder) / "lib" / LIBRARY
        if library.exists():
            _load(library)


def _load(library: Path) -> None:
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:  # of another machine, or cut short: images are drawn without xformers as well
        logger.warning("the CUDA runtime for xformers cannot be loaded: %s", error)
