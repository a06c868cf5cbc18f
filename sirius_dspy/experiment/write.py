"""Writes results of an experiment to files."""

from __future__ import annotations

import json
from pathlib import Path

from sirius_dspy.experiment.plot import plot
from sirius_dspy.experiment.render import render_markdown
from sirius_dspy.experiment.results import Results
from sirius_dspy.files import write_text


def write_results(results: Results, folder: Path) -> tuple[Path, ...]:
    """Write `results.json`, `results.md` and, if anything was measured, `results.png`.

    Args:
        results: Results of an experiment.
        folder: Existing folder to write to.

    Returns:
        The paths of the files.

    Raises:
        MissingDependencyError: Matplotlib is not installed; the other two files have been written.
    """
    data, text = folder / "results.json", folder / "results.md"
    write_text(data, json.dumps(results.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_text(text, render_markdown(results))
    if not any(row.measured for row in results.rows):
        return data, text
    return data, text, plot(results, folder / "results.png")
