"""What a compile did, from its results and its experience library: as Markdown, JSON and one HTML page.

    contents     everything that a report shows
    experience   what the library says: growth, repairs, data flow
    stories      which runs are shown side by side, and what flowed in most runs
    headline     the result in one line, and what a reader wants to know first
    tables       the same tables for Markdown and HTML; spending has those of cost
    numbers      numbers as texts
    plots        some of the tables as SVG, and one PNG
    page         the HTML page, from `templates/`

What is not there is left out, never shown as zero.
"""

from sirius_dspy.report.contents import Report
from sirius_dspy.report.experience import read_experience
from sirius_dspy.report.markdown import render_markdown
from sirius_dspy.report.page import render_html
from sirius_dspy.report.write import write_report, write_run_report

__all__ = ["Report", "read_experience", "render_html", "render_markdown", "write_report", "write_run_report"]
