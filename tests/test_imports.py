"""The import arrows of docs/structures.md: `models <- pipeline <- service`, what each part may not know, and its map of modules."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("models", "pipeline", "service")
PURE = ("schedules", "spacing", "prediction", "solvers", "guidance", "reference", "likelihood")  # of pipeline: mathematics, no networks
SERVICE_MAY_USE = (
    "build",
    "capacity",
    "catalog",
    "curve",
    "params",
    "planning",
    "evaluation",
    "bench",
    "fleet",
    "scaling",
    "images",
    "guidance",
    "solvers",
)  # of pipeline; solvers: to list them
TORCH_FREE = ("gateway", "schemas", "errors", "accounting", "auth")  # of service: small replicas that start fast
DRAGS_TORCH_IN = {"torch", "torchvision", "diffusers", "open_clip", "timm", "transformers", "xformers", "accelerate"}
NOT_FOR_PIPELINE = {"ray", "fastapi", "starlette", "pydantic"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name. When: as its importer is imported, in a `call`, or `never` but for types."""

    target: str
    line: int
    when: str

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]


class Tree:
    """The Python files under `root`, by module name."""

    def __init__(self, root: Path):
        self.root = root
        self.files = {_module_name(f.relative_to(root)): f for part in (*OURS, "loadtests") for f in sorted((root / part).rglob("*.py"))}
        self.syntax = {name: ast.parse(f.read_text(encoding="utf-8")) for name, f in self.files.items()}
        self.imports = {name: tuple(self._imports(name)) for name in self.files}

    def of(self, *prefixes: str) -> Iterator[str]:
        """The modules that are one of `prefixes` or lie inside one."""
        return (name for name in self.files if any(_inside(name, p) for p in prefixes))

    def _imports(self, name: str) -> Iterator[Import]:
        for node, when in _walk(self.syntax[name], "import"):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno, when) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(name, node)
                for alias in node.names:
                    target = f"{base}.{alias.name}"
                    yield Import(target if target in self.files else base, node.lineno, when)
            elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
                yield from (Import(str(a.value), node.lineno, when) for a in node.args[:1] if isinstance(a, ast.Constant))

    def _absolute(self, name: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts, is_package = name.split("."), self.files[name].name == "__init__.py"
        parts = parts[: len(parts) + is_package - node.level]
        return ".".join((*parts, node.module) if node.module else parts)


def broken_arrows(tree: Tree) -> list[str]:
    """One line for each import in `tree` that the design forbids."""
    core = [m for m in tree.of("models") if not _inside(m, "models.recipes")]
    pure = {f"pipeline.{p}" for p in PURE}
    gates = tuple(f"pipeline.{p}" for p in SERVICE_MAY_USE)
    below_recipes = [*core, *tree.of("pipeline", "service")]
    return [
        *_forbid(tree, core, lambda i: i.top in ("pipeline", "service"), "models knows nothing above it"),
        *_forbid(tree, tree.of("models.recipes"), lambda i: i.top == "service", "recipes do not know the service"),
        *_forbid(tree, below_recipes, lambda i: _inside(i.target, "models.recipes"), "nothing stands on a recipe"),
        *_forbid(tree, tree.of("pipeline"), lambda i: i.top == "service", "pipeline knows nothing above it"),
        *_forbid(tree, tree.of("pipeline"), lambda i: i.top in NOT_FOR_PIPELINE, "pipeline is torch only"),
        *_forbid(
            tree,
            tree.of(*pure),
            lambda i: (
                not (any(_inside(i.target, p) for p in ("pipeline.params", *pure)) or i.top == "torch" or i.top in sys.stdlib_module_names)
            ),
            "pure mathematics",
        ),
        *_forbid(tree, tree.of("service"), lambda i: i.top == "models", "networks only through pipeline.build"),
        *_forbid(
            tree,
            tree.of("service"),
            lambda i: i.top == "pipeline" and i.when != "never" and not any(_inside(i.target, gate) for gate in gates),
            f"of pipeline, service uses {', '.join(SERVICE_MAY_USE)}, and types",
        ),
        *_forbid(tree, tree.of("loadtests"), lambda i: i.top in OURS, "load tests speak HTTP only"),
        *_environment(tree),
        *_torch_paths(tree),
    ]


def _forbid(tree: Tree, modules: Iterator[str] | list[str], is_bad: Callable[[Import], bool], why: str) -> list[str]:
    return [f"{name}:{i.line} imports {i.target} ({why})" for name in modules for i in tree.imports[name] if is_bad(i)]


def _environment(tree: Tree) -> Iterator[str]:
    for name in tree.of("pipeline"):
        for node in ast.walk(tree.syntax[name]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os" and node.attr in ENVIRONMENT:
                yield f"{name}:{node.lineno} uses os.{node.attr} (only service.settings reads the environment)"
            elif isinstance(node, ast.ImportFrom) and node.module == "os" and ENVIRONMENT & {a.name for a in node.names}:
                yield f"{name}:{node.lineno} imports from os.environ (only service.settings reads the environment)"


def _torch_paths(tree: Tree) -> Iterator[str]:
    for start in tree.of(*(f"service.{m}" for m in TORCH_FREE)):
        if path := _eager_path_to_torch(tree, start):
            yield f"{' -> '.join(path)} ({start} starts without torch)"


def _eager_path_to_torch(tree: Tree, start: str) -> tuple[str, ...] | None:
    paths, seen = [(start,)], {start}
    for path in paths:  # breadth first: the list grows while we walk it
        for target in (i.target for i in tree.imports.get(path[-1], ()) if i.when == "import"):
            if target.partition(".")[0] in DRAGS_TORCH_IN or target == "safetensors.torch":
                return (*path, target)
            for name in _with_parents(target):
                if name in tree.files and name not in seen:
                    seen.add(name)
                    paths.append((*path, name))
    return None


def _walk(node: ast.AST, when: str) -> Iterator[tuple[ast.AST, str]]:
    """Every node below `node`, and when it runs."""
    for child in ast.iter_child_nodes(node):
        then = when
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "import":
            then = "call"
        elif isinstance(node, ast.If) and _is_type_checking(node.test) and child in node.body:
            then = "never"
        yield child, then
        yield from _walk(child, then)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: n + 1]) for n in range(len(parts)))


def test_this_tree_keeps_the_arrows():
    assert broken_arrows(Tree(ROOT)) == []


def test_torch_free_modules_start_without_torch():
    imports = [f"import service.{m}" for m in TORCH_FREE if (ROOT / "service" / f"{m}.py").exists()]
    code = "\n".join(["import sys", *imports, f"sys.exit(' '.join({DRAGS_TORCH_IN!r} & set(sys.modules)) or None)"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", OURS)
def test_the_map_names_every_module(part):
    section = re.search(rf"^## {part}\n(.*?)^## ", (ROOT / "docs" / "structures.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section
    named = {f"{part}.{name}" for row in re.findall(r"^\| (`.*?) \|", section[1], re.MULTILINE) for name in re.findall(r"`([\w.]+)`", row)}
    packages = {name for name, file in Tree(ROOT).files.items() if file.name == "__init__.py" and name != f"{part}.recipes"}
    modules = {m for m in Tree(ROOT).of(part) if m != f"{part}.recipes" and m != part and _parent(m) not in packages - {part}}
    assert named == modules


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("models/dit.py", "import pipeline.params", "models.dit:1 imports pipeline.params"),
        ("models/vae.py", "def f():\n    from service import stages", "models.vae:2 imports service.stages"),
        ("models/dit.py", "from models.recipes import emoji", "nothing stands on a recipe"),
        ("models/recipes/emoji/train.py", "import service.app", "recipes do not know the service"),
        ("pipeline/engine.py", "import ray", "pipeline is torch only"),
        ("pipeline/engine.py", "from pydantic import BaseModel", "pipeline is torch only"),
        ("pipeline/engine.py", "from service import settings", "pipeline knows nothing above it"),
        ("pipeline/engine.py", "import importlib\nimportlib.import_module('service.app')", "pipeline.engine:2 imports service.app"),
        ("pipeline/runner.py", "import os\nthreads = os.environ.get('OMP_NUM_THREADS')", "pipeline.runner:2 uses os.environ"),
        ("pipeline/runner.py", "from os import getenv", "only service.settings reads the environment"),
        ("pipeline/solvers.py", "from models import dit", "pipeline.solvers:1 imports models.dit (pure"),
        ("pipeline/solvers.py", "import numpy", "pipeline.solvers:1 imports numpy"),
        ("pipeline/schedules.py", "from . import engine", "pipeline.schedules:1 imports pipeline.engine"),
        ("service/stages.py", "from models.dit import DiT", "networks only through pipeline.build"),
        ("service/stages.py", "from pipeline.engine import Engine", "of pipeline, service uses"),
        ("service/stages.py", "def draw():\n    from pipeline.engine import Engine", "service.stages:2 imports pipeline.engine"),
        ("service/stages.py", "if TYPE_CHECKING:\n    from models.dit import DiT", "networks only through pipeline.build"),
        ("service/auth.py", "if TYPE_CHECKING:\n    import ray\nelse:\n    import torch", "service.auth -> torch"),
        ("service/gateway.py", "import torch", "service.gateway -> torch"),
        ("service/gateway.py", "import torch.nn as nn", "service.gateway -> torch.nn"),
        ("service/gateway.py", "from service.stages import Stage", "service.gateway -> service.stages -> pipeline.build -> torch"),
        ("service/errors.py", "from .stages import Stage", "service.errors -> service.stages -> pipeline.build -> torch"),
        ("service/auth.py", "try:\n    import open_clip\nexcept ImportError:\n    pass", "service.auth -> open_clip"),
        ("loadtests/locustfile.py", "from service.schemas import Request", "load tests speak HTTP only"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, path, source, complaint):
    complaints = broken_arrows(_tree_with(tmp_path, path, source))
    assert any(complaint in line for line in complaints), complaints


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/recipes/emoji/train.py", "from pipeline.build import load_engine"),
        ("pipeline/solvers.py", "import math\nimport torch\nfrom pipeline import prediction\nfrom pipeline.params import StageCost"),
        ("pipeline/engine.py", "import os.path\nfrom models import dit\nhere = os.path.abspath('.')"),
        ("service/stages.py", "from pipeline import build, params"),
        ("service/stages.py", "if TYPE_CHECKING:\n    from pipeline.engine import Engine"),
        ("service/gateway.py", "from pipeline.params import GenerationParams\n\n\ndef draw():\n    import torch"),
        ("service/gateway.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_a_right_import_passes(tmp_path, path, source):
    assert broken_arrows(_tree_with(tmp_path, path, source)) == []


def _tree_with(root: Path, path: str, source: str) -> Tree:
    """A small clean tree in which one file is replaced by `source`."""
    files = {f"{p}/__init__.py": "" for p in (*OURS, "models/recipes", "models/recipes/emoji")}
    files |= {"models/dit.py": "import torch", "pipeline/params.py": "", "pipeline/prediction.py": "import math"}
    files |= {"pipeline/build.py": "import torch", "pipeline/engine.py": "", "service/stages.py": "from pipeline.build import build"}
    for name, text in (files | {path: source}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Tree(root)
