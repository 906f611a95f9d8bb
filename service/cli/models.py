"""`safelight models`: the embedded models, and the families of checkpoint folders that can be served."""

import argparse
import json

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import Family, UnknownModel, list_families, list_models
from safelight.service.cli import UserError
from safelight.service.http.translation import size_names

HUB = "https://huggingface.co/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    try:
        models = list_models()
    except UnknownModel as error:
        raise UserError(str(error)) from None
    families = list_families()
    if args.json:
        report = {"models": list(map(_describe, models)), "families": list(map(_describe_family, families))}
        print(json.dumps(report))
    else:
        title = "Folders that can be served with --model DIR:"
        print("\n".join([*map(_as_text, models), "", title, *map(_family_as_text, families)]))
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
        "timestep_spacing": model.timestep_spacing,
    }


def _describe_family(family: Family) -> dict[str, object]:
    return {
        "name": family.name,
        "pipeline": family.pipeline,
        "mark": family.variant,
        "parts": [part.folder for part in family.parts],
        "optional_parts": [part.folder for part in family.parts if part.is_optional],
        "text": family.text,
        "num_inference_steps": family.num_steps,
        "guidance_scale": family.guidance_scale,
        "solver": family.solver,
        "timestep_spacing": family.timestep_spacing,
        "schedule": family.schedule,
        "sides": list(family.sides),
        "licence": family.licence,
        "origin": [HUB + repository for repository in family.origin],
        "extra": family.extra,
    }


def _as_text(model: ModelInfo) -> str:
    return f"{model.id}  {', '.join(size_names(model))}  {_defaults(model)}  {model.licence}"


def _family_as_text(family: Family) -> str:
    sides = " or ".join(f"{side}x{side}" for side in family.sides)
    shapes = f"{sides} and other shapes of that area" if family.has_buckets else sides
    facts = [
        f"{family.pipeline} {family.variant}".strip(),
        f"{_defaults(family)}; {family.schedule}; {shapes}",
        f"text: {family.text}",
        f"weights: {', '.join(family.origin) or 'the embedded ones'} ({family.licence})",
    ]
    if family.extra:
        facts.append(
            f"needs: pip install 'safelight[{family.extra}]'"
            + (", for T5" if any(part.is_optional for part in family.parts) else "")
        )
    return "\n".join(f"{family.name if fact is facts[0] else '':13} {fact}" for fact in facts)


def _defaults(model: ModelInfo | Family) -> str:
    return f"{model.num_steps} steps of {model.solver} at guidance {model.guidance_scale:g}"
