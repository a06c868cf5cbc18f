"""What a compile did, out of its results and its experience library: as Markdown, JSON and one HTML page.

    run          what a run directory says, also after an interruption
    experience   what the library says: growth, repairs, gates, prices
    stories      which trajectories are shown side by side, and what flowed in most runs
    tables       all of it as tables, the same ones for Markdown and HTML
    plots        some of it as SVG, and one PNG
    page         the HTML page, from `templates/`

What is not there is left out, never shown as zero.
"""

from sirius_dspy.report.markdown import render_markdown
from sirius_dspy.report.page import render_html
from sirius_dspy.report.run import read_results, score_interval
from sirius_dspy.report.write import write_report, write_run_report

__all__ = ["read_results", "render_html", "render_markdown", "score_interval", "write_report", "write_run_report"]
