"""Which package may import which, that there is no circle, and what starts without torch."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("models", "pipeline", "service")

# Which packages a package may import, itself aside. A module that stands beside the packages counts as one.
ARROWS: dict[str, str] = {
    "models.checkpoints": "",
    "models.cuda_runtime": "",
    "models.device_copies": "",
    "models.evaluation": "models.checkpoints models.text",
    "models.networks": "models.checkpoints models.device_copies",
    "models.text": "models.checkpoints",
    "models.autoencoders": "models.checkpoints models.networks",
    "models.packed": "models.cuda_runtime models.device_copies models.networks",
    "models.tiny": "models.autoencoders models.checkpoints models.networks models.text",
    "models.families": "models.checkpoints models.networks models.packed models.text",
    "models.denoisers": "models.checkpoints models.families models.networks models.packed",
    "models.find_checkpoint": "models.checkpoints models.families models.tiny",
    "models.inspection": (
        "models.autoencoders models.checkpoints models.denoisers models.families models.networks"
    ),
    "pipeline.errors": "",
    "pipeline.flops": "models.autoencoders models.families models.networks",
    "pipeline.params": "",
    "pipeline.scheduling": "pipeline.params",
    "pipeline.diffusion": "pipeline.errors",
    "pipeline.catalog": (
        "models.autoencoders models.checkpoints models.families models.find_checkpoint models.text "
        "pipeline.diffusion pipeline.errors pipeline.params"
    ),
    "pipeline.engine": (
        "models.autoencoders models.device_copies models.networks models.text pipeline.diffusion "
        "pipeline.errors pipeline.flops pipeline.params pipeline.scheduling"
    ),
    "pipeline.assembly": (
        "models.autoencoders models.checkpoints models.denoisers models.families models.find_checkpoint "
        "models.inspection models.networks pipeline.catalog pipeline.engine pipeline.params "
        "pipeline.scheduling"
    ),
    "pipeline.capacity": (
        "models.autoencoders models.checkpoints models.families models.text pipeline.catalog "
        "pipeline.diffusion pipeline.errors pipeline.flops pipeline.params pipeline.scheduling"
    ),
    "pipeline.calibration": (
        "models.checkpoints models.denoisers models.packed pipeline.assembly "
        "pipeline.capacity pipeline.catalog pipeline.engine pipeline.flops pipeline.params "
        "pipeline.scheduling"
    ),
    "pipeline.evaluation": (
        "models.autoencoders models.checkpoints models.denoisers models.evaluation models.networks "
        "pipeline.assembly pipeline.catalog pipeline.diffusion pipeline.engine "
        "pipeline.params"
    ),
    "pipeline.benchmark": (
        "models.checkpoints models.cuda_runtime models.families models.networks pipeline.assembly "
        "pipeline.calibration pipeline.capacity pipeline.catalog pipeline.diffusion pipeline.engine "
        "pipeline.params pipeline.scheduling"
    ),
    "models.recipes": "models.* pipeline.*",
    "service.errors": "pipeline.errors",
    "service.messages": "pipeline.engine pipeline.params pipeline.scheduling",
    "service.runtime": "",
    "service.model_values": "",
    "service.database": "service.runtime",
    "service.keys": "service.database service.errors",
    "service.image_store": "service.errors service.runtime",
    "service.moderation": "service.errors",
    "service.setting_types": ("service.database service.image_store service.model_values service.moderation"),
    "service.setting_sources": "service.runtime",
    "service.settings": "service.model_values service.runtime service.setting_sources service.setting_types",
    "service.served_model": (
        "models.checkpoints pipeline.catalog pipeline.errors service.model_values service.setting_types "
        "service.settings"
    ),
    "service.previews": "pipeline.params service.messages service.runtime",
    "service.image_stream": "pipeline.params service.messages",
    "service.backend": "pipeline.params service.messages service.previews",
    "service.usage": (
        "pipeline.params service.backend service.database service.errors service.messages service.settings"
    ),
    "service.stages": (
        "pipeline.diffusion pipeline.engine pipeline.errors pipeline.params "
        "pipeline.scheduling service.errors service.messages service.moderation service.usage"
    ),
    "service.quotas": (
        "pipeline.params service.database service.errors service.keys service.messages service.setting_types"
    ),
    "service.access": (
        "pipeline.params service.database service.errors service.keys service.messages service.quotas "
        "service.runtime service.settings"
    ),
    "service.telemetry": (
        "service.backend service.keys service.messages service.setting_types service.settings service.usage"
    ),
    "service.model_backends": "pipeline.catalog service.backend service.errors",
    "service.early_refusals": "service.errors",
    "service.promises": (
        "service.early_refusals service.errors service.messages service.setting_types service.settings "
        "service.usage"
    ),
    "service.retries": "service.errors",
    "service.dispatcher": (
        "pipeline.diffusion pipeline.params service.backend service.early_refusals service.errors "
        "service.image_stream service.messages service.model_backends service.previews service.promises "
        "service.retries service.runtime service.settings service.telemetry service.usage"
    ),
    "service.stage_sets": "pipeline.capacity pipeline.catalog service.settings",
    "service.jobs": (
        "pipeline.params service.database service.errors service.messages service.runtime "
        "service.setting_types service.settings"
    ),
    "service.batches": "service.database service.errors service.jobs service.settings",
    "service.inprocess": (
        "pipeline.assembly pipeline.calibration pipeline.capacity pipeline.catalog "
        "pipeline.engine pipeline.params service.backend service.messages service.moderation "
        "service.previews service.runtime service.settings service.stage_sets service.stages"
    ),
    "service.http": (
        "pipeline.catalog pipeline.engine pipeline.errors pipeline.params pipeline.scheduling "
        "service.access service.backend service.batches service.database service.dispatcher service.errors "
        "service.image_store service.image_stream service.jobs service.keys service.messages "
        "service.model_backends "
        "service.moderation "
        "service.previews service.promises service.quotas "
        "service.runtime service.setting_types service.settings service.telemetry service.usage"
    ),
    "service.python": (
        "pipeline.catalog pipeline.errors service.errors service.http "
        "service.inprocess service.runtime service.served_model service.settings"
    ),
    "service.ray_serve": (
        "pipeline.assembly pipeline.catalog pipeline.params pipeline.scheduling service.backend "
        "service.errors service.http service.inprocess service.messages service.model_backends "
        "service.previews service.runtime service.settings service.stage_sets service.stages "
        "service.telemetry service.usage"
    ),
    "service.app": (
        "service.previews service.ray_serve service.runtime service.served_model service.setting_types "
        "service.settings service.stage_sets"
    ),
    "service.live_changes": (
        "pipeline.assembly pipeline.catalog service.app service.errors service.http service.messages "
        "service.ray_serve service.runtime service.served_model service.setting_types service.settings "
        "service.stage_sets service.telemetry"
    ),
    "service.local": (
        "pipeline.capacity pipeline.catalog service.app service.live_changes service.previews "
        "service.ray_serve service.runtime service.served_model service.setting_types service.settings "
        "service.stage_sets"
    ),
    "service.supervision": "service.local service.runtime service.settings service.telemetry",
    "service.cli": "pipeline.* service.*",
}
# These start without torch, so that a gateway replica is small.
TORCH_FREE = (
    "models.autoencoders.options",
    "models.families",
    "models.find_checkpoint",
    "models.networks.config",
    "models.text.config",
    "models.text.flops",
    "pipeline.params",
    "pipeline.scheduling",
    "pipeline.catalog.served_models",
    "pipeline.capacity.model_profiles",
    "pipeline.flops",
    "service.access",
    "service.batches",
    "service.errors",
    "service.http",
    "service.jobs",
    "service.keys",
    "service.quotas",
    "service.settings",
    "service.telemetry",
    "service.usage",
)
TORCH_LIBRARIES = {
    "torch",
    "torchvision",
    "diffusers",
    "open_clip",
    "timm",
    "transformers",
    "xformers",
    "accelerate",
}
SERVICE_LIBRARIES = {"ray", "fastapi", "starlette", "pydantic", "pydantic_settings"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


@dataclass(frozen=True)
class Import:
    """One import: `target` without the leading `safelight.`; `when` is `import`, `call` or `never`."""

    target: str
    line: int
    when: str

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


class Tree:
    """The Python files under `root`, by module name without the leading `safelight.`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = [path for part in (*PARTS, "loadtests") for path in sorted((root / part).rglob("*.py"))]
        self.files = {_module_name(path.relative_to(root)): path for path in paths}
        self.syntax = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}
        self.imports = {name: tuple(self._imports(name)) for name in self.files}

    def modules(self, *prefixes: str) -> list[str]:
        """The modules that are one of `prefixes` or lie inside one."""
        return [name for name in self.files if any(_is_inside(name, prefix) for prefix in prefixes)]

    def _imports(self, name: str) -> Iterator[Import]:
        for node, when in _walk(self.syntax[name], "import"):
            for target in self._targets(name, node):
                ours = target.removeprefix("safelight.")
                yield Import(
                    ours if ours.partition(".")[0] in PARTS else target, getattr(node, "lineno", 0), when
                )

    def _targets(self, name: str, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = self._absolute(name, node)
            for alias in node.names:
                target = f"{base}.{alias.name}"
                yield target if target.removeprefix("safelight.") in self.files else base
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from (str(value.value) for value in node.args[:1] if isinstance(value, ast.Constant))

    def _absolute(self, name: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts, is_package = name.split("."), self.files[name].name == "__init__.py"
        parts = parts[: len(parts) + is_package - node.level]
        return ".".join((*parts, node.module) if node.module else parts)


def forbidden_imports(tree: Tree) -> list[str]:
    """One line for each import in `tree` that the design forbids."""
    return [
        *_wrong_arrows(tree),
        *_forbid(
            tree, tree.modules("pipeline"), lambda i: i.top in SERVICE_LIBRARIES, "pipeline is torch only"
        ),
        *_forbid(
            tree,
            tree.modules("pipeline.diffusion"),
            _is_not_mathematics,
            "mathematics: torch and the standard library",
        ),
        *_forbid(
            tree,
            tree.modules("loadtests"),
            lambda i: i.top in (*PARTS, "safelight"),
            "load tests speak HTTP only",
        ),
        *_environment(tree),
        *_torch_paths(tree),
    ]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in edges.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                components.append(sorted(component))

    for node in edges:
        if node not in index:
            visit(node)
    return components


def file_edges(tree: Tree) -> dict[str, set[str]]:
    """Which modules each module imports, at any time, annotations included."""
    return {
        name: {i.target for i in imports if i.target in tree.files} for name, imports in tree.imports.items()
    }


def package_edges(tree: Tree) -> dict[str, set[str]]:
    """Which packages of `ARROWS` each of them imports."""
    edges: dict[str, set[str]] = {}
    for name, targets in file_edges(tree).items():
        package = _package(name)
        edges.setdefault(package, set()).update(_package(target) for target in targets)
        edges[package].discard(package)
    return edges


def _wrong_arrows(tree: Tree) -> Iterator[str]:
    for name in tree.modules(*PARTS):
        package = _package(name)
        if package in PARTS:  # the __init__.py of a part
            continue
        if package not in ARROWS:
            yield f"{name}: package {package} is not in ARROWS"
            continue
        for i in tree.imports[name]:
            target = _package(i.target)
            if i.top in PARTS and target != package and not _is_allowed(target, ARROWS[package].split()):
                allowed = ARROWS[package] or "nothing"
                yield f"{name}:{i.line} imports {i.target} ({package} may import: {allowed})"


def _is_allowed(package: str, allowed: list[str]) -> bool:
    if package.startswith("models.recipes"):
        return False
    return any(package == name or (name.endswith(".*") and package.startswith(name[:-1])) for name in allowed)


def _forbid(tree: Tree, modules: Iterable[str], is_bad: Callable[[Import], bool], why: str) -> list[str]:
    return [
        f"{name}:{i.line} imports {i.target} ({why})"
        for name in modules
        for i in tree.imports[name]
        if is_bad(i)
    ]


def _is_not_mathematics(i: Import) -> bool:
    return i.top not in ("pipeline", "torch") and i.top not in sys.stdlib_module_names


def _environment(tree: Tree) -> Iterator[str]:
    why = "only service.settings reads the environment"
    for name in tree.modules("pipeline"):
        for node in ast.walk(tree.syntax[name]):
            if (
                isinstance(node, ast.Attribute)
                and ast.unparse(node.value) == "os"
                and node.attr in ENVIRONMENT
            ):
                yield f"{name}:{node.lineno} uses os.{node.attr} ({why})"
            elif isinstance(node, ast.ImportFrom) and _imports_environment(node):
                yield f"{name}:{node.lineno} imports from os ({why})"


def _imports_environment(node: ast.ImportFrom) -> bool:
    return node.module == "os" and not ENVIRONMENT.isdisjoint(alias.name for alias in node.names)


def _torch_paths(tree: Tree) -> Iterator[str]:
    for start in tree.modules(*TORCH_FREE):
        if path := _eager_path_to_torch(tree, start):
            yield f"{' -> '.join(path)} ({start} starts without torch)"


def _eager_path_to_torch(tree: Tree, start: str) -> tuple[str, ...] | None:
    paths: list[tuple[str, ...]] = [(start,)]
    visited = {start}
    for path in paths:  # breadth first: the list grows while it is walked
        for target in (i.target for i in tree.imports.get(path[-1], ()) if i.when == "import"):
            if target.partition(".")[0] in TORCH_LIBRARIES or target == "safetensors.torch":
                return (*path, target)
            for name in _with_parents(target):
                if name in tree.files and name not in visited:
                    visited.add(name)
                    paths.append((*path, name))
    return None


def _walk(node: ast.AST, when: str) -> Iterator[tuple[ast.AST, str]]:
    """Every node below `node`, and when it runs."""
    for child in ast.iter_child_nodes(node):
        child_when = when
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "import":
            child_when = "call"
        elif isinstance(node, ast.If) and _is_type_checking(node.test) and child in node.body:
            child_when = "never"
        yield child, child_when
        yield from _walk(child, child_when)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _package(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _is_inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: n + 1]) for n in range(len(parts)))


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(ROOT)


def test_this_tree_has_no_forbidden_import(tree: Tree) -> None:
    assert forbidden_imports(tree) == []


def test_no_circle_of_files(tree: Tree) -> None:
    assert circles(file_edges(tree)) == []


def test_no_circle_of_packages(tree: Tree) -> None:
    assert circles(package_edges(tree)) == []


def test_no_arrow_is_allowed_that_nothing_uses(tree: Tree) -> None:
    used = package_edges(tree)
    allowed = {
        package: {n for n in names.split() if not n.endswith("*")} for package, names in ARROWS.items()
    }
    assert {
        package: names - used[package] for package, names in allowed.items() if names - used[package]
    } == {}


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}) == [["b", "c"]]


def test_torch_free_modules_start_without_torch(tree: Tree) -> None:
    names = [name for name in tree.modules(*TORCH_FREE) if not name.endswith("__main__")]
    imports = [f"import safelight.{name}" for name in names]
    code = "\n".join(
        ["import sys", *imports, f"sys.exit(' '.join({TORCH_LIBRARIES!r} & set(sys.modules)) or None)"]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", PARTS)
def test_the_map_names_every_package(part: str, tree: Tree) -> None:
    text = (ROOT / "docs" / "structures.md").read_text()
    section = re.search(rf"^## {part}\n(.*?)(?:^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section
    rows = re.findall(r"^\| (`.*?) \|", section[1], re.MULTILINE)
    named = {f"{part}.{name}" for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert named == {_package(name) for name in tree.modules(part)} - {part}


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        (
            "models/tiny.py",
            "import safelight.pipeline.params",
            "models.tiny:1 imports pipeline.params",
        ),
        (
            "models/tiny.py",
            "def f():\n    from safelight.service import stages",
            "models.tiny:2 imports service",
        ),
        (
            "models/tiny.py",
            "from safelight.models.recipes import emoji",
            "models.tiny:1 imports models.recipes",
        ),
        (
            "models/recipes/emoji/train.py",
            "import safelight.service.app",
            "imports service.app (models.recipes may",
        ),
        ("pipeline/engine/engine.py", "import ray", "pipeline is torch only"),
        ("pipeline/engine/engine.py", "from pydantic import BaseModel", "pipeline is torch only"),
        (
            "pipeline/engine/engine.py",
            "from safelight.service import settings",
            "imports service (pipeline.engine may",
        ),
        (
            "pipeline/engine/engine.py",
            "import importlib\nimportlib.import_module('safelight.service.app')",
            "pipeline.engine.engine:2 imports service.app",
        ),
        (
            "pipeline/engine/runner.py",
            "import os\nn = os.environ.get('OMP_NUM_THREADS')",
            "runner:2 uses os.environ",
        ),
        ("pipeline/engine/runner.py", "from os import getenv", "only service.settings reads the environment"),
        (
            "pipeline/diffusion/solvers.py",
            "from safelight.models import tiny",
            "imports models.tiny (pipeline.diffusion may",
        ),
        (
            "pipeline/diffusion/solvers.py",
            "import numpy",
            "pipeline.diffusion.solvers:1 imports numpy (mathematics",
        ),
        ("pipeline/diffusion/spacing.py", "from ..engine import engine", "imports pipeline.engine.engine"),
        (
            "service/stages/denoise.py",
            "from safelight.models.tiny import write_tiny",
            "imports models.tiny (service.stages",
        ),
        (
            "service/inprocess.py",
            "from safelight.pipeline.benchmark import report",
            "imports pipeline.benchmark",
        ),
        (
            "service/http/access.py",
            "if TYPE_CHECKING:\n    import ray\nelse:\n    import torch",
            "service.http.access -> torch",
        ),
        ("service/http/gateway.py", "import torch.nn as nn", "service.http.gateway -> torch.nn"),
        (
            "service/http/gateway.py",
            "from safelight.pipeline.catalog.planning import make_plan",
            "service.http.gateway -> pipeline.catalog.planning -> torch",
        ),
        (
            "service/errors.py",
            "try:\n    import open_clip\nexcept ImportError:\n    pass",
            "service.errors -> open_clip",
        ),
        ("service/corner/new.py", "", "package service.corner is not in ARROWS"),
        (
            "loadtests/locustfile.py",
            "from safelight.service.http.schemas import R",
            "load tests speak HTTP only",
        ),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    complaints = forbidden_imports(_tree_with(tmp_path, path, source))
    assert any(complaint in line for line in complaints), complaints


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/recipes/emoji/train.py", "from safelight.pipeline.assembly.engine import build_engine"),
        (
            "pipeline/diffusion/solvers.py",
            "import math\nimport torch\nfrom safelight.pipeline.diffusion import spacing",
        ),
        ("pipeline/engine/engine.py", "import os.path\nfolder = os.path.abspath('.')"),
        (
            "service/stages/denoise.py",
            "if TYPE_CHECKING:\n    from safelight.pipeline.engine.engine import Engine",
        ),
        ("service/http/gateway.py", "def draw():\n    import torch"),
        ("service/http/gateway.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_a_right_import_passes(tmp_path: Path, path: str, source: str) -> None:
    assert forbidden_imports(_tree_with(tmp_path, path, source)) == []


def _tree_with(root: Path, path: str, source: str) -> Tree:
    """A small clean tree in which one file is replaced by `source`."""
    files = {f"{part}/__init__.py": "" for part in (*PARTS, "models/recipes", "models/recipes/emoji")}
    files |= {
        "models/tiny.py": "import torch",
        "pipeline/params.py": "",
        "pipeline/engine/engine.py": "",
    }
    files |= {"pipeline/diffusion/spacing.py": "import math", "pipeline/catalog/planning.py": "import torch"}
    for name, text in (files | {path: source}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Tree(root)
