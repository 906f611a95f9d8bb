"""open_clip's classes that this project uses, imported without libraries that only its other classes need.

`import open_clip` also imports transformers and timm, where they are installed, for towers that this project
does not load through open_clip, and torch's compiler, for an operator of torchvision that no tower calls.
Together they take two thirds of the time beyond torch, in every process that reads text.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

LIBRARIES_OF_OTHER_TOWERS = ("transformers", "timm")
COMPILER = "torch._dynamo"


@contextmanager
def _without_other_towers() -> Iterator[None]:
    """Let imports of these libraries fail, as where they are not installed; open_clip allows for that."""
    absent = [name for name in LIBRARIES_OF_OTHER_TOWERS if name not in sys.modules]
    # None is Python's mark of a module that cannot be imported.
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextmanager
def _compiler_on_demand() -> Iterator[None]:
    """Let torchvision take the function that it needs of torch's compiler without importing the compiler."""
    if COMPILER in sys.modules:
        yield
        return
    utils = ModuleType(f"{COMPILER}.utils")
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    stand_ins = {COMPILER: ModuleType(COMPILER), utils.__name__: utils}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _is_compile_supported(device_type: str) -> bool:
    supported: bool = import_module(f"{COMPILER}.utils").is_compile_supported(device_type)
    return supported


with _without_other_towers(), _compiler_on_demand():
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer

__all__ = [
    "CLIPTextCfg",
    "CLIPVisionCfg",
    "CustomTextCLIP",
    "LayerNorm",
    "QuickGELU",
    "SimpleTokenizer",
    "TextTransformer",
]
