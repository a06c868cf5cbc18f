"""A report as one HTML page that needs nothing but itself: no scripts, no fonts, nothing from the network.

All texts from data go through Jinja's autoescape; only the SVG made by `plots` and `graph.chart`, which escape their
own, is put in as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sirius_dspy.graph.chart import to_svg
from sirius_dspy.report.contents import Report
from sirius_dspy.report.headline import details, facts, summary, title
from sirius_dspy.report.plots import svg_plots
from sirius_dspy.report.stories import Flowed
from sirius_dspy.report.tables import tables

_FOLDED = 280
"""Characters of a text that are shown at once; of a longer one, the beginning, and all of it on demand."""


def render_html(report: Report) -> str:
    """Tell what a compile did, as one HTML page.

    Args:
        report: The results; without the compile's part of the library, the page has no library growth, no data flow
            and no runs.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("sirius_dspy.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = _words
    environment.globals["folded"] = _FOLDED
    plots = {name: Markup(svg) for name, svg in svg_plots(report).items()}
    experience = report.experience
    flows = [] if experience is None else experience.flows
    return environment.get_template("report.html.j2").render(
        title=title(report),
        summary=summary(report),
        facts=facts(report),
        details=details(report),
        tables=tables(report),
        plots=plots,
        flows=[(flow, Markup(_flow_svg(flow, number))) for number, flow in enumerate(flows, start=1)],
        stories=[] if experience is None else experience.stories,
    )


def _words(value: Any) -> str:
    """A value of a run as a text: a text as it is, everything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = dict(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _flow_svg(flow: Flowed, number: int) -> str:
    """The chart, with ids that no other chart of the page has."""
    svg = to_svg(flow.chart, f"Data flow of {flow.count} runs")
    return re.sub(r'(\bid="|url\(#)', rf"\g<1>flow{number}-", svg)
