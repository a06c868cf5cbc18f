"""A report as files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sirius_dspy.errors import LibraryError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.opening import open_library
from sirius_dspy.optimizer.reading import read_results
from sirius_dspy.optimizer.results import CompileResult
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.redact import hide_keys
from sirius_dspy.report.contents import Report
from sirius_dspy.report.experience import read_experience
from sirius_dspy.report.markdown import render_markdown
from sirius_dspy.report.page import render_html
from sirius_dspy.report.plots import write_png

logger = logging.getLogger(__name__)

AnyLibrary = str | Path | sa.URL | ExperienceLibrary


def write_report(
    results: CompileResult, folder: Path | str, *, library: AnyLibrary | None = None, day: date | None = None
) -> tuple[Path, ...]:
    """Write `report.md`, `report.json`, `report.html` and `progress.png`.

    Args:
        results: `detailed_results` of the compiled program.
        folder: Made if it is not there; older reports in it are replaced.
        library: Where the compile's runs are. Without it, the report has what the results say: no library growth, no
            data flow, no runs.
        day: When the compile ended; for the head of the report.

    Returns:
        The paths written. Without an iteration there is nothing to draw, and no `progress.png`.

    Raises:
        LibraryError: The library is not there or cannot be read.
    """
    folder = Path(folder)
    with _open(library) as opened:
        experience = None if opened is None else read_experience(opened, results)
    report = Report(results, experience, date=day)
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        _write(folder / "report.md", render_markdown(report)),
        _write(folder / "report.json", json.dumps(_with_intervals(results), indent=2, ensure_ascii=False) + "\n"),
    ]
    written.append(_write(folder / "report.html", render_html(report)))
    if results.iterations:
        written.append(write_png(report, folder / "progress.png"))
    return tuple(written)


def write_run_report(
    run_dir: Path | str, *, page: Path | str | None = None, library: AnyLibrary | None = None
) -> tuple[Path, ...]:
    """Write the report of a run directory, of a compile that has finished or not.

    Args:
        run_dir: The folder of the compile.
        page: The HTML file, with the Markdown beside it; by default `report/report.html` in `run_dir`.
        library: Where the compile's runs are; by default what the folder has or names, if that is there.

    Returns:
        The paths written: HTML, then Markdown.

    Raises:
        RunMismatchError: No compile has begun in the folder.
        RunDamagedError: A file of it is damaged.
        LibraryError: As for `write_report`.
    """
    folder = RunDir(Path(run_dir))
    with _open(_own_library(folder.path) if library is None else library) as opened:
        results = read_results(run_dir)
        experience = None if opened is None else read_experience(opened, results)
    report = Report(results, experience, folder.test(), folder.last_change().date())
    target = Path(page) if page is not None else folder.path / "report" / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    markdown = _write(target.with_suffix(".md"), render_markdown(report))
    return _write(target, render_html(report)), markdown


@contextmanager
def _open(library: AnyLibrary | None) -> Iterator[ExperienceLibrary | None]:
    """The library, closed afterwards unless the caller brought it open."""
    if library is None or isinstance(library, ExperienceLibrary):
        yield library
    else:
        with open_library(library) as opened:
            yield opened


def _own_library(run_dir: Path) -> Path | None:
    """The run directory, as the place of its library; `None` if it knows of none, or of one that is gone."""
    try:
        open_library(run_dir)
    except LibraryError as error:
        logger.warning("The report is without what only the library knows. %s", error)
        return None
    return run_dir


def _write(path: Path, text: str) -> Path:
    """Write a text without API keys; half a surrogate pair, which LMs write and UTF-8 does not know, becomes `?`."""
    path.write_text(hide_keys(text), encoding="utf-8", errors="replace")
    return path


def _with_intervals(results: CompileResult) -> dict[str, Any]:
    iterations = [
        {**entry.to_dict(), "score_interval": None if entry.interval is None else list(entry.interval)}
        for entry in results.iterations
    ]
    return {**results.to_dict(), "iterations": iterations}
