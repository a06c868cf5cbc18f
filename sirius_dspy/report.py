"""What a compile did, as tables and a plot, out of its `detailed_results`.

The results are plain JSON. An iteration that was cut short lacks some of its parts; what is not there is left out of
the tables, never shown as zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.stats import Interval, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Mapping[str, Any]
Rows = Iterable[Sequence[str]]

_NONE = "-"
"""What a table cell shows where nothing was measured."""


def render_markdown(results: Results) -> str:
    """Tell what a compile did, in Markdown tables.

    Args:
        results: `CompileEnded.results`, which is also `detailed_results` of the compiled program.

    Returns:
        Scores with their 95 % Wilson intervals, agents, repairs, seconds per stage and costs; a table without rows is
        left out.
    """
    iterations = results.get("iterations", [])
    sections = [
        "# SiriuS report",
        _summary(results),
        _section("Validation score", ("iteration", "score", "95 % interval", "examples"), _score_rows(iterations)),
        _section(
            "Agents", ("iteration", "agent", "rows", "dropped", "loss", "promoted", "seconds"), _agent_rows(iterations)
        ),
        _section(
            "Repair",
            ("iteration", "failed runs tried", "repaired", "share", "attempts by verdict"),
            _repair_rows(iterations),
        ),
        _section("Repair by agent", ("iteration", "agent", "tried", "repaired"), _repair_agent_rows(iterations)),
        _seconds_section(iterations),
        _section(
            "Cost", ("iteration", "what", "LM calls", "prompt tokens", "completion tokens"), _cost_rows(iterations)
        ),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def write_report(results: Results, folder: Path | str) -> tuple[Path, ...]:
    """Write `report.md`, `report.json` and `progress.png`.

    Args:
        results: As for `render_markdown`.
        folder: Made if it is not there; older reports in it are replaced.

    Returns:
        The paths written. Without an iteration there is nothing to draw, and no `progress.png`.

    Raises:
        MissingDependencyError: Matplotlib, which comes with mlflow, is absent; the two texts are written by then.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    markdown, data = folder / "report.md", folder / "report.json"
    markdown.write_text(render_markdown(results), encoding="utf-8")
    data.write_text(json.dumps(_with_intervals(results), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not results.get("iterations"):
        return markdown, data
    return markdown, data, _plot(results["iterations"], folder / "progress.png")


def score_interval(iteration: Results) -> Interval | None:
    """The 95 % Wilson interval of an iteration's score; `None` where the score is not a share of solved examples."""
    score, num_val = iteration.get("score"), iteration.get("num_val", 0)
    if score is None or not num_val or not 0 <= score <= 1:
        return None
    solved = round(score * num_val)
    is_share = abs(score * num_val - solved) < 1e-6
    return wilson_interval(solved, num_val) if is_share else None


def _with_intervals(results: Results) -> dict[str, Any]:
    iterations = [
        {**iteration, **({"score_interval": list(interval)} if (interval := score_interval(iteration)) else {})}
        for iteration in results.get("iterations", [])
    ]
    return {**results, "iterations": iterations}


def _summary(results: Results) -> str:
    lines = []
    if results.get("best_score") is not None:
        best = results.get("best_iteration")
        first = "the student as given" if best == 0 else f"iteration {best}"
        lines.append(f"Best: {first}, with a validation score of {results['best_score']:.4f}.")
    names = (
        ("run", "Run"),
        ("run_dir", "Directory"),
        ("seed", "Seed"),
        ("threshold", "Success is a reward of at least"),
    )
    lines += [f"{name}: `{results[key]}`" for key, name in names if results.get(key) is not None]
    return "\n".join(f"- {line}" for line in lines)


def _score_rows(iterations: Iterable[Results]) -> Iterator[Sequence[str]]:
    for iteration in iterations:
        if (score := iteration.get("score")) is not None:
            interval = score_interval(iteration)
            bounds = f"{interval.low:.4f} to {interval.high:.4f}" if interval else _NONE
            yield _number(iteration), f"{score:.4f}", bounds, str(iteration.get("num_val", _NONE))


def _agent_rows(iterations: Iterable[Results]) -> Iterator[Sequence[str]]:
    for iteration in iterations:
        for name, agent in iteration.get("agents", {}).items():
            promoted = iteration.get("promoted", {}).get(name)
            yield (
                _number(iteration),
                name,
                str(agent.get("rows", _NONE)),
                _counts(agent.get("dropped", {})),
                _first_to_last(agent.get("losses", [])),
                _NONE if promoted is None else "yes" if promoted else "no",
                _seconds(agent.get("seconds")),
            )


def _repair_rows(iterations: Iterable[Results]) -> Iterator[Sequence[str]]:
    for iteration in iterations:
        if repair := iteration.get("repair"):
            tried, repaired = repair.get("tried", 0), repair.get("repaired", 0)
            share = f"{repaired / tried:.1%}" if tried else _NONE
            yield _number(iteration), str(tried), str(repaired), share, _counts(repair.get("verdicts", {}))


def _repair_agent_rows(iterations: Iterable[Results]) -> Iterator[Sequence[str]]:
    for iteration in iterations:
        for name, agent in iteration.get("repair", {}).get("by_agent", {}).items():
            yield _number(iteration), name, str(agent.get("tried", 0)), str(agent.get("repaired", 0))


def _seconds_section(iterations: Sequence[Results]) -> str:
    stages = list(dict.fromkeys(stage for iteration in iterations for stage in iteration.get("seconds", {})))
    rows = [
        (_number(iteration), *(_seconds(seconds.get(stage)) for stage in stages), _seconds(sum(seconds.values())))
        for iteration in iterations
        if (seconds := iteration.get("seconds", {}))
    ]
    return _section("Seconds per stage", ("iteration", *stages, "all"), rows)


def _cost_rows(iterations: Iterable[Results]) -> Iterator[Sequence[str]]:
    for iteration in iterations:
        for key, what in (("usage", "all"), ("repair", "of it: repair")):
            usage = iteration.get(key, {})
            if "calls" in usage:
                counts = (usage.get(name) for name in ("calls", "prompt_tokens", "completion_tokens"))
                yield _number(iteration), what, *(_NONE if count is None else f"{count:,}" for count in counts)


def _section(title: str, header: Sequence[str], rows: Rows) -> str:
    lines = [_line(row) for row in rows]
    return "\n".join([f"## {title}\n", _line(header), _line(["---"] * len(header)), *lines]) if lines else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _number(iteration: Results) -> str:
    return str(iteration.get("iteration", _NONE))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or _NONE


def _first_to_last(losses: Sequence[float]) -> str:
    return f"{losses[0]:.3f} -> {losses[-1]:.3f}" if losses else _NONE


def _seconds(seconds: float | None) -> str:
    return _NONE if seconds is None else f"{seconds:.1f}"


def _plot(iterations: Sequence[Results], path: Path) -> Path:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("The plot of a report needs Matplotlib. Run `pip install matplotlib`.") from error
    figure = Figure(figsize=(10, 4), layout="constrained")  # not pyplot: no global state, no window, any thread
    FigureCanvasAgg(figure)
    scores, successes = figure.subplots(1, 2)
    _plot_scores(scores, iterations)
    _plot_successes(successes, iterations)
    figure.savefig(path, dpi=120)
    return path


def _plot_scores(axes: Axes, iterations: Sequence[Results]) -> None:
    scored = [iteration for iteration in iterations if iteration.get("score") is not None]
    numbers, scores = [item["iteration"] for item in scored], [item["score"] for item in scored]
    bounds = [score_interval(item) or Interval(item["score"], item["score"]) for item in scored]
    below = [score - bound.low for score, bound in zip(scores, bounds, strict=True)]
    above = [bound.high - score for score, bound in zip(scores, bounds, strict=True)]
    axes.errorbar(numbers, scores, yerr=[below, above], marker="o", capsize=4, color="tab:blue")
    _label(axes, "Validation score (bars: 95 % interval)", "score", numbers)


def _plot_successes(axes: Axes, iterations: Sequence[Results]) -> None:
    rates = {
        item["iteration"]: item["metrics"]["collect/success_rate"]
        for item in iterations
        if "collect/success_rate" in item.get("metrics", {})
    }
    repairs = {item["iteration"]: item["repair"] for item in iterations if item.get("repair", {}).get("tried")}
    shares = [repair["repaired"] / repair["tried"] for repair in repairs.values()]
    axes.bar(list(repairs), shares, width=0.4, color="tab:orange", label="failed runs repaired")
    axes.plot(list(rates), list(rates.values()), marker="o", color="tab:green", label="rollouts that succeed")
    for number, share, repair in zip(repairs, shares, repairs.values(), strict=True):
        axes.annotate(f"{repair['repaired']} of {repair['tried']}", (number, share), ha="center", va="bottom")
    axes.legend()
    _label(axes, "Experience", "share", sorted({*rates, *repairs}))


def _label(axes: Axes, title: str, unit: str, numbers: Sequence[int]) -> None:
    axes.set_title(title)
    axes.set_xlabel("iteration")
    axes.set_ylabel(unit)
    axes.set_xticks(numbers)
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), max(1.0, high))
    axes.grid(alpha=0.3)
