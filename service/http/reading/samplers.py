"""Solvers by the names of AUTOMATIC1111, stable-diffusion.cpp, ComfyUI and diffusers."""

import re
from collections.abc import Collection

# By the sampler's name in small letters without punctuation: `DPM++ 2M` is `dpmpp2m`.
SOLVERS: dict[str, str] = {
    "euler": "euler",
    "flowmatcheuler": "euler",
    "eulera": "euler_ancestral",
    "eulerancestral": "euler_ancestral",
    "ddim": "ddim",
    "ddimtrailing": "ddim",
    "ddpm": "ddpm",
    "heun": "heun",
    "heunpp2": "heun",
    "dpm2": "dpm_2s",
    "kdpm2": "dpm_2s",
    "dpmsolver": "dpmpp_2m",
    "dpmppsolver": "dpmpp_2m",
    "dpmpp2m": "dpmpp_2m",
    "dpmpp2mv2": "dpmpp_2m",
    "dpmpp3m": "dpmpp_3m",
    "dpmpp2s": "dpmpp_2s",
    "dpmpp2sa": "dpmpp_2s",
    "dpmpp2sancestral": "dpmpp_2s",
    "dpmppsde": "sde_dpmpp_2m",
    "dpmpp2msde": "sde_dpmpp_2m",
    "dpmpp3msde": "sde_dpmpp_2m",
    "unipc": "unipc_2",
    "unipcbh2": "unipc_2",
    "plms": "plms",
    "pndm": "plms",
    "ipndm": "ipndm",
    "ipndmv": "ipndm",
}
# A1111's and ComfyUI's noise schedules; an empty text is the model's own spacing.
SPACINGS: dict[str, str] = {
    "karras": "karras",
    "uniform": "trailing",
    "trailing": "trailing",
    "leading": "leading",
    "linspace": "linspace",
    "quadratic": "quadratic",
    "automatic": "",
    "default": "",
    "discrete": "",
    "normal": "",
    "simple": "",
    "sgmuniform": "",
}
_CLASS_ENDINGS = re.compile(r"(discrete|multistep|singlestep)?scheduler$")


def _key(name: str) -> str:
    return _CLASS_ENDINGS.sub("", re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp")))


def find_sampler(name: str, solvers: Collection[str]) -> tuple[str, str] | None:
    """One of `solvers` and the spacing that a sampler's `name` asks for, empty if it says none.

    `DPM++ 2M Karras` is the solver `dpmpp_2m` with the spacing `karras`. None: no such solver.
    """
    if name.strip().lower() in solvers:
        return name.strip().lower(), ""
    key = _key(name.removeprefix("k_"))
    spacing = "karras" if key.endswith("karras") else ""
    solver = SOLVERS.get(key.removesuffix("karras"))
    return None if solver is None or solver not in solvers else (solver, spacing)


def find_spacing(name: str, spacings: Collection[str]) -> str | None:
    """One of `spacings` by a noise schedule's `name`; empty for the model's own, None if there is none."""
    if name.strip().lower() in spacings:
        return name.strip().lower()
    spacing = SPACINGS.get(_key(name))
    return spacing if spacing in (*spacings, "") else None
