"""Run the notebooks from top to bottom and keep what they show: `python notebooks/execute.py [NAME ...]`.

Nothing in the outputs is touched up. What a reader should not see (paths of this machine, warnings, progress bars,
keys) makes this command fail and leaves the file as it was.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

_UNWANTED = {
    "a path of this machine": re.compile(
        r"(?:(?<![\w.:/])|file://)/(?:home|root|tmp|Users|var|work|mnt|opt)/[\w.-]+|\b[A-Z]:\\\\"
    ),
    "a key": re.compile(r"\bsk-[\w-]{8,}|\bhf_\w{8,}|Bearer \w{8,}"),
    "a colour code or a progress bar": re.compile(r"\x1b\[|\r(?!\n)|it/s\]"),
}


def execute(notebook: NotebookNode, folder: Path, *, timeout: int = 3000) -> NotebookNode:
    """Run a copy of a notebook in a kernel of its own, without the outputs it has.

    Args:
        notebook: Left as it is.
        folder: Working directory of the kernel.
        timeout: Seconds that one cell may take; a compile of two minutes has taken twenty on a busy machine.

    Raises:
        CellExecutionError: A cell raised.
    """
    fresh = nbformat.from_dict(notebook)
    for cell in _code_cells(fresh):
        cell.update(outputs=[], execution_count=None)
    client = NotebookClient(
        fresh,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    with tempfile.TemporaryDirectory(prefix="sirius-notebooks-") as scratch:
        client.execute(env=_environment(scratch))
    fresh.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},  # without the version of this machine
    }
    return fresh


def problems(notebook: NotebookNode) -> list[str]:
    """List what a reader should not see in an executed notebook, in words; empty if all is well."""
    issues = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code" and cell.source and cell.execution_count is None:
            issues.append(f"cell {number} was not run")
        if complaints := [text_of(output) for output in cell.get("outputs", []) if _is_complaint(output)]:
            issues.append(f"cell {number} complained {len(complaints)} times, first: {complaints[0][:300]!r}")
        text = "\n".join([cell.source, *map(text_of, cell.get("outputs", []))])
        issues += [
            f"cell {number} has {what}: {hit[0]!r}" for what, rule in _UNWANTED.items() if (hit := rule.search(text))
        ]
    return issues


def refresh(path: Path) -> list[str]:
    """Execute a notebook in its folder and write its outputs into it; return the problems, which prevent that."""
    fresh = execute(nbformat.read(path, as_version=4), path.parent)
    issues = problems(fresh)
    if not issues:
        nbformat.write(fresh, path)
    return issues


def main(names: list[str]) -> int:
    """Refresh the named notebooks, or all; return the exit code."""
    chosen = [path for path in NOTEBOOKS if not names or path.stem in names or path.name in names]
    if not chosen:
        print(f"No notebook is named {names}; there are {[path.stem for path in NOTEBOOKS]}.", file=sys.stderr)
        return 2
    failed = False
    for path in chosen:
        issues = refresh(path)
        print(f"{path.name}: {'; '.join(issues) or 'written'}", file=sys.stderr)
        failed = failed or bool(issues)
    return int(failed)


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _is_complaint(output: NotebookNode) -> bool:
    return output.output_type == "error" or output.get("name") == "stderr"


def text_of(output: NotebookNode) -> str:
    """Return the text of an output, without pictures in base 64."""
    data = sorted(output.get("data", {}).items())
    values = [value for kind, value in data if not kind.startswith("image/") or kind == "image/svg+xml"]
    return "\n".join([output.get("text", ""), *output.get("traceback", []), *map(str, values)])


def _environment(scratch: str) -> dict[str, str]:
    """The kernel's environment: it imports from this checkout, reaches no hub, and leaves its files in `scratch`."""
    paths = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TMPDIR": scratch,
        "IPYTHONDIR": scratch,
    }
    return {**os.environ, **settings}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
