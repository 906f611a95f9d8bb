"""Load the CUDA runtime library that the xformers wheel is linked against.

It must be in memory before the first import of xformers; diffusers imports xformers wherever it is installed.
"""

import ctypes
import importlib.util
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

# The wheel was built for CUDA 12. Beside a torch for CUDA 13 it finds no CUDA 12 runtime by itself.
LIBRARY = "libcudart.so.12"


def preload_cuda_runtime() -> None:
    """Load the library that the extra `cuda` installs, if it is there, and silence xformers' import warnings.

    Whether xformers works is tested by a real call (`safelight.models.packed.xformers_attention`);
    `safelight doctor` reports the result.
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
    except OSError as error:
        # Built for another machine, or truncated. Images can be generated without xformers.
        logger.warning("the CUDA runtime for xformers cannot be loaded: %s", error)
