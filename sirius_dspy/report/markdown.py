"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sirius_dspy.chart import to_mermaid
from sirius_dspy.report.experience import Experience
from sirius_dspy.report.run import Results
from sirius_dspy.report.tables import Table, details, headline, tables


def render_markdown(results: Results, experience: Experience | None = None) -> str:
    """Tell what a compile did, in Markdown tables.

    Args:
        results: `CompileEnded.results`, which is also `detailed_results` of the compiled program.
        experience: The compile's part of the library, from `read_experience`.

    Returns:
        Scores with their 95 % Wilson intervals, agents, repairs, seconds per stage and costs; with `experience` also
        promotion, the library's growth, and the usual data flow as a Mermaid chart. A table without rows is left out.
    """
    sections = [
        "# SiriuS report",
        _list(headline(results, experience)),
        _list(details(results), quoted=True),
        *(_section(table) for table in tables(results, experience)),
        *([] if experience is None else _flows(experience)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _list(pairs: Iterable[tuple[str, str]], *, quoted: bool = False) -> str:
    return "\n".join(f"- {label}: `{value}`" if quoted else f"- {label}: {value}" for label, value in pairs)


def _section(table: Table) -> str:
    rule = ["---" if is_text else "---:" for is_text in table.texts]
    lines = [f"## {table.title}", "", *([table.note, ""] if table.note else []), _line(table.header), _line(rule)]
    return "\n".join([*lines, *map(_line, table.rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _flows(experience: Experience) -> list[str]:
    return [
        f"## Data flow\n\nTaken by {flow.count} of {flow.looked_at} runs:\n\n```mermaid\n{to_mermaid(flow.chart)}```"
        for flow in experience.flows[:1]
    ]
