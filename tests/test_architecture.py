"""Imports go one way, heavy packages come late, and the package stands without the repository around it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "sirius_dspy"

LAYERS = (
    ("credentials", "dspy_internals", "imports", "stats"),
    ("redact",),
    ("errors", "files"),
    ("checks", "plain"),
    ("trajectory",),
    ("examples", "identity"),
    ("graph", "lms", "local", "tracking"),
    ("program",),
    ("adapter", "running"),
    ("executors", "library", "repair", "training"),
    ("cluster", "credit", "vllm"),
    ("optimizer",),
    ("checkpoint", "report"),
    ("export", "server", "window"),
    ("mlflow",),
    ("baselines",),
    ("experiment",),
    ("__init__", "testing"),
    ("demo",),
    ("cli",),
)
"""The parts of the package; each imports only from earlier rows, and packages from within themselves."""

HEAVY = {
    "datasets": {"library", "local", "vllm"},
    "fastapi": {"server", "window"},
    "gguf": {"local"},
    "huggingface_hub": {"export", "local"},
    "matplotlib": {"experiment", "report"},
    "mlflow": {"checkpoint", "mlflow"},
    "openvino_genai": {"local"},
    "peft": {"local", "vllm"},
    "psycopg": {"library"},
    "ray": {"executors"},
    "safetensors": {"local"},
    "torch": {"local", "vllm"},
    "transformers": {"local", "vllm"},
    "trl": {"local", "vllm"},
    "uvicorn": {"server", "window"},
}
"""Package to the parts that may import it, and only inside functions."""

CHILD_PROCESSES = {
    *("local/train.py", "local/learning.py", "local/decoder.py", "local/adapter.py"),
    *("local/low_rank.py", "local/attention.py", "local/merge.py", "local/convert.py"),
    "local/peft_base.py",
    *("local/prefer.py", "local/trl_internals.py", "local/child.py"),
    *("local/unquantized.py", "local/running.py", "local/key_values.py", "local/passes.py"),
    "vllm/train.py",
}
"""Files that run in the training process, or are imported late by it or by an engine: they may import heavy packages at
their top."""


WEB = "server"
"""The part that only `sirius-dspy serve` imports, late: its files may import web packages at their top."""


def part_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from runtime_nodes(node)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name for node in runtime_nodes(tree) for name in imported(node)}


def top_level_imports(path: Path) -> set[str]:
    """What importing the file imports: function bodies are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    return {name for node in runtime_nodes(tree) if id(node) not in inside for name in imported(node)}


FILES = sorted(PACKAGE.rglob("*.py"))
LAYER_OF = {part: number for number, layer in enumerate(LAYERS) for part in layer}


def test_every_part_has_its_place():
    assert {part_of(path) for path in FILES} == set(LAYER_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    own = part_of(path)
    names = {name.split(".")[1] for name in imports_of(path) if name.startswith("sirius_dspy.")}
    parts = {name for name in names if name in LAYER_OF and name != own}
    assert [part for part in sorted(parts) if LAYER_OF[part] >= LAYER_OF[own]] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_package_does_not_need_the_repository(path):
    outside = {
        name for name in imports_of(path) if name.split(".")[0] in ("programs", "metrics", "benchmarks", "tests")
    }
    assert outside == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_heavy_packages_are_imported_late_and_in_their_place(path):
    own = part_of(path)
    used = {name.split(".")[0] for name in imports_of(path)} & set(HEAVY)
    assert {name for name in used if own not in HEAVY[name]} == set()
    if own != WEB and path.relative_to(PACKAGE).as_posix() not in CHILD_PROCESSES:
        assert {name.split(".")[0] for name in top_level_imports(path)} & set(HEAVY) == set()


def test_importing_the_package_adds_no_heavy_package_to_dspy():
    code = "import sys, {}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = {
        name: set(subprocess.run([sys.executable, "-c", code.format(name)], **RUN).stdout.split())
        for name in ("dspy", "sirius_dspy.cli")
    }
    assert (loaded["sirius_dspy.cli"] - loaded["dspy"]) & {*HEAVY, "numpy", "openvino", "pandas", "litellm"} == set()


RUN = {"check": True, "capture_output": True, "text": True, "cwd": ROOT, "timeout": 120}
