"""Imported by every worker of Ray at its start: in a spare one, it imports what replicas import.

Ray imports the modules that `RAY_preload_python_modules` names. The driver asks for a spare worker by a file
in the service's folder, and the worker that removes it is one. So this module, unlike all others, does
something when it is imported.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safelight.pipeline.catalog.model_info import ModelInfo

REQUEST = "spare_wanted"  # the file that asks for a spare worker, with the pickled models that are served
MARKS = "spare_workers"  # the folder with a file for each spare worker, named by its process


def ask_for_spare(folder: Path, models: Sequence[ModelInfo]) -> None:
    """Let the next worker of the service in `folder` be a spare one."""
    (folder / MARKS).mkdir(exist_ok=True)
    part = folder / f"{REQUEST}.part"
    part.write_bytes(pickle.dumps(tuple(models)))
    part.replace(folder / REQUEST)


def _import_libraries(folder: Path) -> None:
    """If a spare worker is asked for, import what any replica of its models may need."""
    request = folder / f"{REQUEST}.{os.getpid()}"
    try:
        (folder / REQUEST).rename(request)  # of several workers only one succeeds
    except OSError:
        return
    models: tuple[ModelInfo, ...] = pickle.loads(request.read_bytes())
    request.unlink()
    from importlib import import_module

    from safelight.service.runtime.fast_imports import gc_frozen_imports

    with gc_frozen_imports():
        for name in MODULES:
            import_module(name)
        from safelight.pipeline.assembly.encoder import import_libraries

        for model in models:
            import_libraries(model)
    (folder / MARKS / str(os.getpid())).touch()


# Those that stages and gateways import when they are made.
MODULES = (
    "safelight.service.http.gateway",
    "safelight.service.ray_serve.deployments",
    "safelight.service.ray_serve.gateway_deployment",
    "safelight.pipeline.assembly.decoder",
    "safelight.pipeline.assembly.encoder",
    "safelight.pipeline.assembly.engine",
    "safelight.pipeline.calibration.cost_curve",
    "safelight.pipeline.calibration.memory",
    "safelight.pipeline.calibration.peak",
    "safelight.pipeline.engine.image_files",
    "safelight.pipeline.engine.source_image",
)

if folder := os.environ.get("RAY_TMPDIR"):
    _import_libraries(Path(folder))
