"""Reads the fields that name a solver or a timestep spacing, also in other servers' vocabulary."""

from safelight.service.http.reading.draft import Draft
from safelight.service.http.reading.samplers import find_sampler, find_spacing


def read_solver(draft: Draft, value: object, sent_name: str) -> tuple[object, str]:
    """The solver that `value` names, and the note if it is written otherwise.

    A name that ends in `Karras` sets the spacing as well. An unknown name is refused under our own field, and
    means the default under another server's, whose samplers are not ours.
    """
    if not isinstance(value, str):
        return value, ""
    if not value.strip():
        return None, "empty: the default"
    sampler = find_sampler(value, draft.model.solvers)
    if sampler is None:
        return (value, "") if sent_name == "solver" else (None, "no solver of this model: the default")
    solver, spacing = sampler
    if spacing in draft.model.spacings and not draft.has("timestep_spacing"):
        draft.put("timestep_spacing", spacing, "timestep_spacing")
        return solver, f"read as the solver {solver} with the timestep spacing {spacing}"
    return solver, f"read as the solver {solver}"


def read_spacing(draft: Draft, value: object, sent_name: str) -> tuple[object, str]:
    """The timestep spacing that `value` names, and the note if it is written otherwise."""
    if not isinstance(value, str):
        return value, ""
    spacing = find_spacing(value, draft.model.spacings) if value.strip() else ""
    if spacing is None:
        is_own = sent_name == "timestep_spacing"
        return (value, "") if is_own else (None, "no timestep spacing of this model: the default")
    return spacing or None, "read as a timestep spacing"


def read_scheduler(draft: Draft, sent_name: str, value: object) -> None:
    """Read `scheduler`: a noise schedule in AUTOMATIC1111's API, and a solver's class in diffusers."""
    spacing = sampler = None
    if isinstance(value, str):
        spacing = find_spacing(value, draft.model.spacings)
        sampler = find_sampler(value, draft.model.solvers)
    if spacing is not None and not draft.has("timestep_spacing"):
        draft.put("timestep_spacing", spacing or None, sent_name)
        draft.adjust(sent_name, value, spacing or None, "read as timestep_spacing")
    elif sampler is not None and not draft.has("solver"):
        draft.put("solver", sampler[0], sent_name)
        draft.adjust(sent_name, value, sampler[0], "read as solver")
    else:
        draft.drop(sent_name, value, "without effect")
