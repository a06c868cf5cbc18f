"""A report as Markdown. Texts from data are escaped: they are shown as they are, and form no HTML and no Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from sirius_dspy.graph.chart import to_mermaid
from sirius_dspy.report.contents import Report
from sirius_dspy.report.experience import Experience
from sirius_dspy.report.headline import details, facts, summary, title
from sirius_dspy.report.table import Table
from sirius_dspy.report.tables import tables


def render_markdown(report: Report) -> str:
    """Tell what a compile did, in Markdown tables.

    Args:
        report: The results; with the compile's part of the library, the text also has promotion, the library's
            growth, and the usual data flow as a Mermaid chart.

    Returns:
        Scores with their 95 % Wilson intervals, agents, repairs, and cost by stage and by agent. A table without rows
        is left out.
    """
    sections = [
        f"# {_escape(title(report))}",
        _escape(summary(report)),
        _list(facts(report)),
        _list(details(report), quoted=True),
        *(_section(table) for table in tables(report)),
        *([] if report.experience is None else _flows(report.experience)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _list(pairs: Iterable[tuple[str, str]], *, quoted: bool = False) -> str:
    return "\n".join(f"- {label}: {_code(value) if quoted else _escape(value)}" for label, value in pairs)


def _section(table: Table) -> str:
    rule = ["---" if is_text else "---:" for is_text in table.is_text]
    note = [table.note, ""] if table.note else []
    rows = (_line(map(_escape, row)) for row in table.rows)
    return "\n".join([f"## {table.title}", "", *note, _line(map(_escape, table.header)), _line(rule), *rows])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    """A text within a line."""
    marked = _MARKUP.sub(r"\\\g<0>", _one_line(text))
    return html.escape(marked, quote=False)


def _code(text: str) -> str:
    """A text within a line, as code; the quotes are longer than any in it."""
    line = _one_line(text)
    longest = max(map(len, re.findall("`+", line)), default=0)
    quotes = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{quotes}{space}{line}{space}{quotes}"


def _one_line(text: str) -> str:
    """Line breaks as spaces, and other control characters as the sign for what cannot be shown."""
    return _CONTROL.sub("\ufffd", _BREAK.sub(" ", text))


_BREAK = re.compile(r"[\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What Markdown would take for more than a letter; a single underscore within a word is none."""


def _flows(experience: Experience) -> list[str]:
    return [
        f"## Data flow\n\nTaken by {flow.count} of {flow.looked_at} runs:\n\n```mermaid\n{to_mermaid(flow.chart)}```"
        for flow in experience.flows[:1]
    ]
