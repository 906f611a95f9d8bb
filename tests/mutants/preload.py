"""Imports the large libraries once, in the process whose children run the tests.

No module of the product, because those are changed, and no tensor: threads do not survive a fork.
"""

import contextlib
import gc
import importlib
import warnings

LIBRARIES = (
    "hypothesis",
    "pytest",
    "numpy",
    "torch",
    "torchvision",
    "transformers",
    "diffusers",
    "diffusers.models",
    "open_clip",
    "PIL.Image",
    "fastapi",
    "fastapi.testclient",
    "httpx2",
    "pydantic_settings",
    "prometheus_client",
    "ray.serve",
    "rich.progress",
    "safetensors.torch",
    "opentelemetry.sdk.trace",
    "matplotlib.pyplot",
)

for library in LIBRARIES:
    with contextlib.suppress(ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(library)
gc.freeze()  # the garbage collector of a child need not visit, and so copy, what was imported
