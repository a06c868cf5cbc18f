"""Results of an experiment as files."""

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
        results: Of an experiment.
        folder: Where to; it exists.

    Returns:
        The paths written.

    Raises:
        MissingDependencyError: Matplotlib, which comes with mlflow, is absent; the two texts are written by then.
    """
    data, text = folder / "results.json", folder / "results.md"
    write_text(data, json.dumps(results.to_dict(), indent=2, ensure_ascii=False) + "\n")
    write_text(text, render_markdown(results))
    if not any(row.measured for row in results.rows):
        return data, text
    return data, text, plot(results, folder / "results.png")
