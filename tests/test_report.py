"""What a compile did, as tables: from its results alone, from its library, from what an interruption left."""

import datetime
import json
import shutil
from dataclasses import replace

import dspy
import pytest

from sirius_dspy.errors import LibraryError, RunMismatchError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.budget import Budget
from sirius_dspy.optimizer.reading import read_results
from sirius_dspy.optimizer.results import (
    AgentResult,
    CompileResult,
    HeldOutScores,
    ProgramScore,
    RepairResult,
    TrialResult,
    UsageResult,
)
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.report import Report, render_html, render_markdown, write_report, write_run_report
from sirius_dspy.running.standing import Standing
from sirius_dspy.testing.library import make_run
from sirius_dspy.testing.results import make_iteration, make_result
from tests import toy


@pytest.fixture
def results():
    """A compile of one iteration with two agents, on an LM whose price is listed and on one whose price is not."""
    first = make_iteration(0, 0.0, stages={"evaluate": UsageResult(10, 1000, 100, 0.0)})
    second = make_iteration(
        1,
        0.5,
        promoted={"solver": True, "analyst|x": False},
        metrics={"collect/success_rate": 0.3},
        agents={
            "analyst|x": AgentResult(rows=12, dropped={"duplicate": 3, "unparsed": 0}, seconds=4.0),
            "solver": AgentResult(
                rows=30, losses=(2.5, 1.25, 0.75), seconds=12.04, usage=UsageResult(400, 40_000, 3000, None)
            ),
        },
        repair=RepairResult(
            tried=10,
            repaired=2,
            verdicts={"failed": 12, "leaked": 1},
            by_agent={"solver": {"tried": 8, "repaired": 2}},
            calls=40,
            prompt_tokens=4000,
            completion_tokens=500,
        ),
        seconds={"collect": 30.0, "train": 40.5},
        stages={"collect": UsageResult(850, 86_000, 6500, 1.5), "repair": UsageResult(40, 4000, 500, None)},
    )
    return make_result(
        [first, second],
        run="0f3a",
        run_dir="runs/x",
        program="Team",
        num_train=20,
        usage=UsageResult(900, 91_000, 7100, None),
        seconds=3725.0,
    )


def table(markdown, title):
    """The cells of one table, header and rule left out."""
    section = markdown.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines[2:]]


def test_markdown_shows_scores_with_their_wilson_interval(results):
    assert table(render_markdown(Report(results)), "Validation score") == [
        ["0", "0.0 %", "0.0 to 27.8 %", "10"],
        ["1", "50.0 %", "23.7 to 76.3 %", "10"],
    ]


def test_markdown_shows_agents_and_repairs(results):
    markdown = render_markdown(Report(results))
    assert table(markdown, "Agents") == [
        ["1", "analyst¦x", "12", "duplicate 3", "-", "no", "4.0"],
        ["1", "solver", "30", "-", "2.500 to 0.750", "yes", "12.0"],
    ]
    assert table(markdown, "Repair") == [["1", "10", "2", "20.0 %", "failed 12, leaked 1"]]
    assert table(markdown, "Repair by agent") == [["1", "solver", "8", "2"]]


def test_markdown_shows_the_cost_of_each_stage_and_agent(results):
    markdown = render_markdown(Report(results))
    assert table(markdown, "Cost by stage") == [
        ["0", "evaluate", "10", "1,000", "100", "0.00", "-"],
        ["1", "collect", "850", "86,000", "6,500", "1.50", "30.0"],
        ["1", "repair", "40", "4,000", "500", "unknown", "-"],
        ["1", "train", "-", "-", "-", "-", "40.5"],
    ]
    assert table(markdown, "Cost by agent") == [["1", "solver", "400", "40,000", "3,000", "unknown"]]


def test_the_head_says_what_came_out_and_what_it_took(results):
    markdown = render_markdown(Report(results, date=datetime.date(2026, 11, 26)))
    assert markdown.startswith("# SiriuS report: Team\n\n0 % to 50 % (validation)\n")
    for line in (
        "Best: iteration 1",
        "Validation score: 50.0 %",
        "95 % interval: 23.7 to 76.3 %",
        "State: finished",
        "Time: 1 h 2 min",
        "LM calls: 900",
        "Tokens: 98,100",
        "US dollars: unknown",
        "Date: `2026-11-26`",
    ):
        assert f"- {line}\n" in markdown


@pytest.mark.parametrize(
    ("ended", "reason", "state"),
    [
        ("finished", "", "finished"),
        ("budget", "100 calls", "ended at its budget: 100 calls"),
        ("nothing learned", "", "ended early, since an iteration gave no training row"),
        ("unfinished", "", "not finished; this is what there is"),
    ],
)
def test_the_head_says_how_the_compile_ended(ended, reason, state):
    assert f"- State: {state}\n" in render_markdown(Report(make_result(ended=ended, reason=reason)))


def test_a_student_that_nothing_improved_is_the_best():
    markdown = render_markdown(Report(make_result([0.5, 0.2])))
    assert "\n50 % (validation)\n" in markdown
    assert "- Best: the student as it came\n" in markdown


def test_rewards_that_are_no_shares_are_shown_as_they_are():
    markdown = render_markdown(Report(make_result([-1.5, 0.125])))
    assert "\n-1.5 to 0.125 (validation)\n" in markdown
    assert table(markdown, "Validation score") == [["0", "-1.5000", "-", "10"], ["1", "0.1250", "-", "10"]]


def test_what_was_not_measured_is_left_out_and_not_shown_as_zero():
    markdown = render_markdown(Report(make_result([make_iteration(0, 0.25, num_val=4)])))
    assert "## Validation score" in markdown
    for title in ("Agents", "Repair", "Cost", "Time", "LM calls"):
        assert title not in markdown


def test_report_is_written_as_markdown_json_html_and_a_real_plot(results, tmp_path):
    paths = write_report(results, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.md", "report.json", "report.html", "progress.png"]
    assert paths[0].read_text(encoding="utf-8") == render_markdown(Report(results))
    written = json.loads(paths[1].read_text(encoding="utf-8"))
    assert written["iterations"][1].pop("score_interval") == pytest.approx([0.2366, 0.7634], abs=1e-4)
    assert written["iterations"][0].pop("score_interval")[0] == 0.0
    assert CompileResult.from_dict(written) == results
    assert paths[2].read_text(encoding="utf-8") == render_html(Report(results))
    assert paths[3].read_bytes().startswith(b"\x89PNG")


def test_plot_shows_the_numbers(results, tmp_path):
    first, second = results.iterations
    better = replace(results, iterations=(first, replace(second, score=0.9)))
    repaired = replace(results, iterations=(first, replace(second, repair=RepairResult(tried=10, repaired=9))))
    drawn = [write_report(entry, tmp_path)[3].read_bytes() for entry in (results, better, repaired)]
    assert len(set(drawn)) == 3


def test_a_single_score_can_be_drawn(tmp_path):
    assert write_report(make_result([make_iteration(0, -0.5, num_val=3)]), tmp_path)[3].is_file()


def test_a_compile_that_stopped_before_its_first_score_has_a_report_without_a_plot(tmp_path):
    paths = write_report(make_result([], run="0f3a", ended="unfinished"), tmp_path)
    assert [path.name for path in paths] == ["report.md", "report.json", "report.html"]
    assert all("0f3a" in path.read_text(encoding="utf-8") for path in paths)


def test_a_measured_test_says_what_each_agent_learnt(results):
    scores = (
        ProgramScore("after iteration 1", 0.5, 10, (0.25, 0.75)),
        ProgramScore("untrained solver", 0.1, 10),
    )
    markdown = render_markdown(Report(results, test=HeldOutScores(scores, "after iteration 1")))
    assert table(markdown, "What each agent learned") == [
        ["after iteration 1", "50.0 %", "25.0 to 75.0 %", "10"],
        ["untrained solver", "10.0 %", "1.8 to 40.4 %", "10"],
    ]
    assert "\n0 % to 50 % (validation), 50 % on test\n" in markdown
    assert "- Test score: 50.0 %\n" in markdown


def test_a_test_that_does_not_name_the_compiled_program_is_no_headline(results):
    markdown = render_markdown(Report(results, test=HeldOutScores((ProgramScore("another", 0.5, 10),))))
    assert "\n0 % to 50 % (validation)\n" in markdown


# With the library of a real compile


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Two iterations of the toy program, whose odd numbers fail until they are repaired."""
    folder = tmp_path_factory.mktemp("report") / "run"
    with dspy.context(adapter=toy.ADAPTER):
        toy.optimizer(folder).compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4, 12)))
    return folder


@pytest.fixture
def library(run_dir):
    with ExperienceLibrary(RunDir(run_dir).library) as opened:
        yield opened


@pytest.fixture
def markdown(run_dir, tmp_path):
    _, path = write_run_report(run_dir, page=tmp_path / "page.html")
    return path.read_text(encoding="utf-8")


def test_growth_is_what_the_library_holds(markdown, library):
    rows = table(markdown, "Experience library")
    assert rows
    for iteration, origin, runs, succeeded, failed, *_ in rows:
        chosen = {"iteration": int(iteration), "origin": origin}
        assert int(runs) == library.count(**chosen)
        assert int(succeeded) == library.count(**chosen, min_reward=1.0)
        assert int(failed) == library.count(**chosen, below=1.0)
    assert sum(int(row[2]) for row in rows) == library.count()


def test_the_funnel_counts_failed_runs_and_narrows(markdown, library):
    rows = table(markdown, "Repair")
    repairs = list(library.repairs(iteration=1))
    everyone = rows[0]
    assert everyone[:2] == ["1", "all"]
    failed, critiqued, regenerated, _, replayed, repaired = map(int, everyone[2:])
    assert failed == len(repairs) > 0
    assert repaired == sum(repair.repaired for repair in repairs) > 0
    assert replayed == sum(any(attempt.trajectory for attempt in repair.attempts) for repair in repairs)
    assert failed >= critiqued >= regenerated >= replayed >= repaired
    assert [row[1] for row in rows if row[0] == "1"][1] == "doubler"


def test_costs_are_those_of_all_calls(markdown, run_dir):
    rows = table(markdown, "Cost by stage")
    counted = sum(int(row[2].replace(",", "")) for row in rows if row[2] != "-")
    assert counted == read_results(run_dir).usage.calls > 0
    assert {row[1] for row in rows} == {"collect", "repair", "curate", "train", "evaluate"}
    assert {row[1] for row in table(markdown, "Cost by agent")} == {"doubler", "writer.predict"}


def test_promotion_shows_what_each_gate_saw():
    """Weights that are worse together are tried agent by agent."""
    trials = (
        TrialResult(("analyst", "solver"), Standing(2, 0, 0.0, 0.0)),
        TrialResult(("analyst",), Standing(2, 0, 0.0, 0.0)),
        TrialResult(("solver",), Standing(2, 0, 1.0, 0.0)),
    )
    kept = make_iteration(1, 0.5, num_val=2, promoted={"analyst": False, "solver": True}, trials=trials)
    assert [(row[1], row[2], row[4]) for row in table(render_markdown(Report(make_result([kept]))), "Promotion")] == [
        ("all new weights", "0.0 %", "no"),
        ("analyst", "0.0 %", "no"),
        ("solver", "50.0 %", "yes"),
    ]


def test_only_the_compile_s_own_runs_of_a_shared_library_count(tmp_path):
    with ExperienceLibrary(tmp_path / "library.db") as library:
        library.add(make_run(run="mine", iteration=1))
        library.add(make_run(run="theirs", iteration=1))
    write_report(make_result(run="mine"), tmp_path, library=tmp_path / "library.db")
    rows = table((tmp_path / "report.md").read_text(encoding="utf-8"), "Experience library")
    assert [row[:3] for row in rows] == [["1", "rollout", "1"]]


def test_the_usual_data_flow_is_drawn(markdown):
    assert "```mermaid" in markdown
    assert "doubled" in markdown.split("```mermaid")[1]


def test_a_library_that_is_not_there_is_an_error_and_is_not_made(tmp_path):
    with pytest.raises(LibraryError, match="There is no library"):
        write_report(make_result(run="r"), tmp_path, library=tmp_path / "nowhere.db")
    assert list(tmp_path.iterdir()) == []


# Of a run directory


def test_the_report_of_a_run_directory_lies_in_it(run_dir):
    page, markdown = write_run_report(run_dir)
    assert (page, markdown) == (run_dir / "report" / "report.html", run_dir / "report" / "report.md")
    best = json.loads((run_dir / "stages" / "results.json").read_text(encoding="utf-8"))["best_iteration"]
    assert f"- Best: iteration {best}\n" in markdown.read_text(encoding="utf-8")


def copied(run_dir, tmp_path, *gone):
    """A run directory as an interruption leaves it."""
    left = tmp_path / "left"
    shutil.copytree(run_dir, left)
    for name in gone:
        (left / "stages" / f"{name}.json").unlink()
    return left


def remove_library(folder):
    own = RunDir(folder).library
    for file in folder.glob(f"{own.name}*"):  # with the log that an open library has
        file.unlink()


def test_an_interrupted_compile_shows_what_is_there(run_dir, tmp_path):
    left = copied(run_dir, tmp_path, "results", "iteration-2")
    text = write_run_report(left)[1].read_text(encoding="utf-8")
    whole = write_run_report(run_dir, page=tmp_path / "whole.html")[1].read_text(encoding="utf-8")
    assert text.startswith("# SiriuS report: Doubling\n")
    assert "- State: not finished" in text
    assert "- State: finished" in whole
    assert [row[0] for row in table(text, "Validation score")] == ["0", "1"]
    assert table(text, "Validation score") == table(whole, "Validation score")[:2]
    assert table(text, "Experience library") == table(whole, "Experience library")
    jobs = [row for row in table(text, "Agents") if row[0] == "2"]
    assert [row[1] for row in jobs] == ["doubler", "writer.predict"]
    assert {row[5] for row in jobs} == {"-"}  # nothing was promoted yet
    assert table(text, "Cost by stage") == table(whole, "Cost by stage")


def test_a_compile_at_its_budget_says_so_and_shows_what_it_began(tmp_path):
    folder = tmp_path / "run"
    with dspy.context(adapter=toy.ADAPTER):
        toy.optimizer(folder, budget=Budget(calls=60)).compile(
            toy.student(), trainset=toy.examples(), valset=toy.examples(range(4, 12))
        )
    results = read_results(folder)
    text = write_run_report(folder)[1].read_text(encoding="utf-8")
    assert results.ended == "budget"
    assert f"- State: ended at its budget: {results.reason}\n" in text
    rows = table(text, "Cost by stage")
    assert sum(int(row[2]) for row in rows if row[2] != "-") == results.usage.calls
    assert rows[-1][0] == str(results.unfinished.iteration)


def test_an_unfinished_first_evaluation_is_no_score(run_dir, tmp_path, library):
    left = copied(run_dir, tmp_path, "results", "iteration-0", "iteration-1", "iteration-2")
    remove_library(left)
    with ExperienceLibrary(RunDir(left).library) as partial:
        first = next(library.trajectories(iteration=0, origin="validation"))
        partial.add(first, library.example(first.example_key))
    text = write_run_report(left)[1].read_text(encoding="utf-8")
    assert "## Validation score" not in text
    assert [row[:3] for row in table(text, "Experience library")] == [["0", "validation", "1"]]


def test_a_run_directory_without_its_library_has_the_rest(run_dir, tmp_path, caplog):
    left = copied(run_dir, tmp_path)
    remove_library(left)
    RunDir(left).note_library("0f3a", str(tmp_path / "gone.sqlite"))
    text = write_run_report(left)[1].read_text(encoding="utf-8")
    assert "## Validation score" in text
    assert "## Experience library" not in text
    assert "## Cost by stage" in text
    assert "There is no library at" in caplog.text


def test_a_folder_of_no_compile_is_refused(tmp_path):
    with pytest.raises(RunMismatchError, match=r"run\.json"):
        write_run_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_keys_do_not_reach_the_report(results, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "a-very-secret-value")
    results = replace(results, run_dir="runs/a-very-secret-value/sk-abcdefghijklmnopqrstuvwxyz")
    for path in write_report(results, tmp_path)[:3]:
        text = path.read_text(encoding="utf-8")
        assert "a-very-secret-value" not in text
        assert "sk-abcdefgh" not in text
