"""Renders results of an experiment as Markdown and as rows of text. A missing number is a dash, never a zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sirius_dspy.experiment.cell import Cell
from sirius_dspy.experiment.results import TRIVIAL, Comparison, Results, Row, versions
from sirius_dspy.report.numbers import NONE, format_usd
from sirius_dspy.stats import wilson_interval

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows. The first column is text, the others are numbers."""


def render_markdown(results: Results) -> str:
    """Render all tables of an experiment as Markdown."""
    recipe = results.recipe
    sections = [
        f"# {recipe.title or results.name}",
        _head(results),
        recipe.notes.strip(),
        _section("Accuracy on the test split", *accuracy_table(results)),
        _explain_numbers(results),
        _section(f"Against {recipe.baseline!r}, on the same questions", *comparison_table(results)),
        _section("Usage, mean over seeds", *cost_table(results)),
        _section("Cells", *_cell_table(results)),
        _section("Critics that learned, on failed runs that gave them no row", *_critic_table(results)),
        *_crossplays(results),
        _troubles(results),
        _section("In the paper", *_paper_table(results)),
        _paper_sources(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def accuracy_table(results: Results) -> Table:
    """Return the accuracy of each method."""
    measures = [name for row in results.rows for name in row.measures]
    names = list(dict.fromkeys(measures))
    papers = [f"paper, {table.lm}" for table in results.recipe.paper]
    header = ["method", "n", "right", "unparsed", "accuracy", "95 % interval", "mean and sd of seeds", *names, *papers]
    rows = [_accuracy_row(results, row, names) for row in results.rows]
    if results.majority is not None:
        blanks = [NONE] * (len(header) - 5)
        rows.append([TRIVIAL, str(results.num_test), NONE, NONE, _percent(results.majority), *blanks])
    return header, rows


def summary_table(results: Results) -> Table:
    """Return the most important columns of all tables, for a terminal."""
    papers = [f"paper, {table.lm}" for table in results.recipe.paper]
    header = [
        "method",
        "right",
        "accuracy",
        "95 % interval",
        "unparsed",
        "difference",
        "p, Holm",
        "LM calls",
        "seconds",
    ]
    rows = [_summary_row(results, row) for row in results.rows]
    if results.majority is not None:
        rows.append([TRIVIAL, NONE, _percent(results.majority), *[NONE] * (6 + len(papers))])
    return [*header, *papers], rows


def _summary_row(results: Results, row: Row) -> list[str]:
    papers = [table.results.get(row.method, NONE) for table in results.recipe.paper]
    accuracy, compared = row.accuracy, row.comparison
    if accuracy is None:
        return [_mark_method(row), *[NONE] * 8, *papers]
    interval = f"{_percent(accuracy.low)} to {_percent(accuracy.high)}"
    against = [_points(compared.difference.value), _p(compared.p_holm)] if compared else [NONE, NONE]
    spent = [_count(row.mean("trained", "calls")), _count(row.mean("trained", "seconds"))]
    shares = [f"{row.num_right} of {row.n}", _percent(accuracy.value), interval, str(row.num_unparsed)]
    return [_mark_method(row), *shares, *against, *spent, *papers]


def _accuracy_row(results: Results, row: Row, names: Sequence[str]) -> list[str]:
    papers = [table.results.get(row.method, NONE) for table in results.recipe.paper]
    accuracy, seeds = row.accuracy, row.spread
    if accuracy is None or seeds is None:
        return [_mark_method(row), *[NONE] * (6 + len(names)), *papers]
    sd = NONE if seeds.sd is None else _percent(seeds.sd)
    measures = [_percent(row.measures[name]) if name in row.measures else NONE for name in names]
    interval = f"{_percent(accuracy.low)} to {_percent(accuracy.high)}"
    over = f"{_percent(seeds.mean)}, {sd} ({seeds.seeds})"
    counts = [str(row.n), str(row.num_right), str(row.num_unparsed)]
    return [_mark_method(row), *counts, _percent(accuracy.value), interval, over, *measures, *papers]


def comparison_table(results: Results) -> Table:
    """Return the differences from the baseline, with intervals and p-values."""
    header = ["method", "difference", "95 % interval", "better on", "worse on", "p", "p, Holm", "seeds"]
    return header, [_comparison_row(row.method, row.comparison) for row in results.rows if row.comparison]


def _comparison_row(method: str, comparison: Comparison) -> list[str]:
    value, low, high = comparison.difference
    interval = f"{_points(low)} to {_points(high)}"
    counts = [str(comparison.gained), str(comparison.lost)]
    return [
        method,
        _points(value),
        interval,
        *counts,
        _p(comparison.p_value),
        _p(comparison.p_holm),
        str(len(comparison.seeds)),
    ]


def cost_table(results: Results) -> Table:
    """Return the usage of each method, before and during its test."""
    header = ["method", "LM calls", "tokens", "seconds", "test calls", "test tokens", "test seconds", "US dollars"]
    rows = []
    for row in results.rows:
        cells = []
        for stage in ("trained", "tested"):
            cells += [
                _count(row.mean(stage, "calls")),
                _count(row.mean(stage, "tokens")),
                _count(row.mean(stage, "seconds")),
            ]
        rows.append([row.method, *cells, format_usd(results.mean_cost(row)) if row.measured else NONE])
    return header, rows


def _cell_table(results: Results) -> Table:
    header = [
        "method",
        "seed",
        "status",
        "n",
        "right",
        "unparsed",
        "accuracy",
        "Wilson 95 %",
        "best iteration",
        "validation",
    ]
    return header, [_cell_row(cell) for cell in results.cells]


def _cell_row(cell: Cell) -> list[str]:
    if not cell.outcomes:
        return [cell.method, str(cell.seed), cell.status, *[NONE] * 7]
    low, high = wilson_interval(cell.num_right, len(cell.outcomes))
    best = cell.details.get("best_iteration")
    scores = " ".join(_percent(score) for score in cell.details.get("validation", ()))
    counts = [str(len(cell.outcomes)), str(cell.num_right), str(cell.num_unparsed), _percent(cell.accuracy)]
    interval = f"{_percent(low)} to {_percent(high)}"
    return [
        cell.method,
        str(cell.seed),
        cell.status,
        *counts,
        interval,
        NONE if best is None else str(best),
        scores or NONE,
    ]


def _critic_table(results: Results) -> Table:
    header = ["method", "seed", "iteration", "rows", "failed runs", "repaired before", "repaired after", "kept"]
    trained = [(cell, critic) for cell in results.cells for critic in cell.details.get("critics", ())]
    return header, [[cell.method, str(cell.seed), *_critic_cells(critic)] for cell, critic in trained]


def _critic_cells(critic: Mapping[str, Any]) -> list[str]:
    counts = [str(critic[name]) for name in ("iteration", "rows", "tried", "repaired_before", "repaired")]
    return [*counts, "yes" if critic["kept"] else "no"]


def _paper_table(results: Results) -> Table:
    """Return the methods of the paper that were not run."""
    ours = {row.method for row in results.rows}
    tables = results.recipe.paper
    names = list(dict.fromkeys(name for table in tables for name in table.results))
    header = ["not run here", *(table.lm for table in tables)]
    return header, [[name, *(table.results.get(name, NONE) for table in tables)] for name in names if name not in ours]


def _paper_sources(results: Results) -> str:
    return "\n".join(f"- {table.lm}: {table.source}" for table in results.recipe.paper)


def _crossplays(results: Results) -> list[str]:
    papers = {table.title: table.paper.strip() for table in results.recipe.crossplay}
    sections = []
    for played in results.crossplay:
        text = f"## {played['title']}, seed {played['seed']}\n\n{played['markdown'].strip()}"
        paper = papers.get(played["title"])
        sections.append(f"{text}\n\nIn the paper:\n\n{paper}" if paper else text)
    return sections


def _head(results: Results) -> str:
    seeds = ", ".join(map(str, results.recipe.seeds))
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    budget = results.recipe.budget
    limits = [f"{getattr(budget, name):g} {name}" for name in ("calls", "tokens", "seconds") if getattr(budget, name)]
    lines = [
        f"Command: `{results.command}`" if results.command else "",
        f"LM: `{results.lm}`",
        f"Test split: {results.num_test} questions; seeds {seeds}",
        f"At most {results.limit} examples of each split" if results.limit else "",
        f"Budget of each method before its test: {', '.join(limits)}" if limits else "No budget",
        f"Written {results.written_at} with {used}",
    ]
    return "\n".join(f"- {line}" for line in lines if line)


def _explain_numbers(results: Results) -> str:
    """Explain the numbers of the table above."""
    several = len(results.recipe.seeds) > 1
    interval = (
        "a bootstrap over seeds and questions" if several else "Wilson's, or a bootstrap where questions are grouped"
    )
    lines = [
        f"Runs without a readable answer count as wrong. The interval is {interval}.",
        "`*`: in some seed, the budget ended the method, and its program so far was tested. `!`: some seed failed.",
    ]
    return "\n".join(lines)


def _troubles(results: Results) -> str:
    lines = [f"- {cell.method}, seed {cell.seed} ({cell.status}): {cell.error}" for cell in results.cells if cell.error]
    return "\n".join(["## What did not go to its end\n", *lines]) if lines else ""


def _mark_method(row: Row) -> str:
    statuses = {cell.status for cell in row.cells}
    return row.method + " *" * ("budget" in statuses) + " !" * ("failed" in statuses)


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    alignment = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join([f"## {title}\n", *(_line(cells) for cells in (header, alignment, *rows))])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _points(difference: float) -> str:
    """Format percentage points with a sign."""
    return f"{100 * difference:+.1f}"


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"
