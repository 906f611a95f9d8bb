"""`safelight models`: what is embedded."""

import argparse
import json
import sys

from pipeline.catalog import UnknownModel, list_models
from pipeline.params import ModelInfo
from service.cli import UserError
from service.translation import size_names


def run(args: argparse.Namespace) -> int:
    try:
        models = list_models()
    except UnknownModel as error:
        raise UserError(str(error)) from None
    if args.json:
        print(json.dumps([_describe(model) for model in models]))
    else:
        _print_table(models)
    return 0


def _describe(model: ModelInfo) -> dict[str, object]:
    return {
        "id": model.id,
        "family": model.family,
        "licence": model.licence,
        "path": str(model.path),
        "sizes": size_names(model),
        "solvers": list(model.solvers),
        "num_inference_steps": model.num_steps,
        "guidance_scale": model.guidance_scale,
        "solver": model.solver,
    }


def _print_table(models: list[ModelInfo]) -> None:
    for model in models:
        defaults = f"{model.num_steps} steps of {model.solver} at guidance {model.guidance_scale:g}"
        sys.stdout.write(f"{model.id}  {', '.join(size_names(model))}  {defaults}  {model.licence}\n")
