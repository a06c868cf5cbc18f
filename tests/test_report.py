import json

import pytest

from sirius_dspy.report import render_markdown, score_interval, write_report


@pytest.fixture
def results():
    return {
        "run": "0f3a",
        "run_dir": "runs/x",
        "seed": 7,
        "threshold": 1.0,
        "best_iteration": 1,
        "best_score": 0.5,
        "iterations": [
            {"iteration": 0, "score": 0.0, "num_val": 10, "lms": {"solver": "base"}},
            {
                "iteration": 1,
                "score": 0.5,
                "num_val": 10,
                "lms": {"solver": "solver@1"},
                "promoted": {"solver": True, "analyst|x": False},
                "metrics": {"collect/success_rate": 0.3},
                "agents": {
                    "analyst|x": {"rows": 12, "dropped": {"duplicate": 3, "unparsed": 0}, "losses": [], "seconds": 4.0},
                    "solver": {"rows": 30, "dropped": {}, "losses": [2.5, 1.25, 0.75], "seconds": 12.04},
                },
                "repair": {
                    "tried": 10,
                    "repaired": 2,
                    "verdicts": {"failed": 12, "leaked": 1},
                    "by_agent": {"solver": {"tried": 8, "repaired": 2}},
                    "calls": 40,
                    "prompt_tokens": 4000,
                    "completion_tokens": 500,
                },
                "seconds": {"collect": 30.0, "train": 40.5},
                "usage": {"calls": 900, "prompt_tokens": 90000, "completion_tokens": 7000},
            },
        ],
    }


def table(markdown, title):
    """The cells of one table, header and rule left out."""
    section = markdown.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines[2:]]


def test_markdown_shows_scores_with_their_wilson_interval(results):
    assert table(render_markdown(results), "Validation score") == [
        ["0", "0.0000", "0.0000 to 0.2775", "10"],
        ["1", "0.5000", "0.2366 to 0.7634", "10"],
    ]


def test_markdown_shows_agents_repairs_seconds_and_costs(results):
    markdown = render_markdown(results)
    assert table(markdown, "Agents") == [
        ["1", "analyst¦x", "12", "duplicate 3", "-", "no", "4.0"],
        ["1", "solver", "30", "-", "2.500 -> 0.750", "yes", "12.0"],
    ]
    assert table(markdown, "Repair") == [["1", "10", "2", "20.0%", "failed 12, leaked 1"]]
    assert table(markdown, "Repair by agent") == [["1", "solver", "8", "2"]]
    assert table(markdown, "Seconds per stage") == [["1", "30.0", "40.5", "70.5"]]
    assert table(markdown, "Cost") == [
        ["1", "all", "900", "90,000", "7,000"],
        ["1", "of it: repair", "40", "4,000", "500"],
    ]
    assert "Best: iteration 1, with a validation score of 0.5000." in markdown


def test_what_was_not_measured_is_left_out_and_not_shown_as_zero():
    markdown = render_markdown(
        {"run": "0f3a", "iterations": [{"iteration": 0, "score": 0.25, "num_val": 4, "lms": {}}]}
    )
    assert "## Validation score" in markdown
    for title in ("Agents", "Repair", "Seconds", "Cost", "Best"):
        assert title not in markdown


@pytest.mark.parametrize("score", [0.333, 1.5, -1.0, None])
def test_a_score_that_is_no_share_of_solved_examples_has_no_interval(score):
    assert score_interval({"score": score, "num_val": 10}) is None


def test_a_share_survives_floating_point():
    assert score_interval({"score": 0.1 + 0.2, "num_val": 30}) is not None


def test_report_is_written_as_markdown_json_and_a_real_plot(results, tmp_path):
    paths = write_report(results, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.md", "report.json", "progress.png"]
    assert paths[0].read_text(encoding="utf-8") == render_markdown(results)
    written = json.loads(paths[1].read_text(encoding="utf-8"))
    assert written["iterations"][1].pop("score_interval") == pytest.approx([0.2366, 0.7634], abs=1e-4)
    assert written["iterations"][0].pop("score_interval")[0] == 0.0
    assert written == results
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_plot_shows_the_numbers(results, tmp_path):
    before = write_report(results, tmp_path)[2].read_bytes()
    results["iterations"][1]["score"] = 0.9
    score = write_report(results, tmp_path)[2].read_bytes()
    results["iterations"][1]["repair"]["repaired"] = 9
    assert len({before, score, write_report(results, tmp_path)[2].read_bytes()}) == 3


def test_a_single_score_can_be_drawn(tmp_path):
    assert write_report({"iterations": [{"iteration": 0, "score": -0.5, "num_val": 3}]}, tmp_path)[2].is_file()


def test_a_compile_that_stopped_before_its_first_score_has_a_report_without_a_plot(tmp_path):
    paths = write_report({"run": "0f3a", "seed": 0}, tmp_path)
    assert [path.name for path in paths] == ["report.md", "report.json"]
    assert "0f3a" in paths[0].read_text(encoding="utf-8")
