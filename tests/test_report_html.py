"""The HTML report: whole in one file, safe whatever LMs wrote, and true to the library."""

import re
from html.parser import HTMLParser

import dspy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.results import AgentResult, HeldOutScores, ProgramScore, UsageResult
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.report import Report, read_experience, render_html, render_markdown, write_report, write_run_report
from sirius_dspy.testing.library import make_run, make_step
from sirius_dspy.testing.results import make_iteration, make_result
from sirius_dspy.trajectory import Attempt, Failure, Repair, example_key
from tests import toy

VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"\' onmouseover="alert(2)" x=\'',
    "</style></svg><img src=http://example.org/x onerror=alert(3)>",
    "{{ 7 * 7 }}{% raw %}",
    "x" * 20_000,
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd",
    "nul \0 bell \a half \ud83d",
    "$\\frac{1}{0}$ &amp; &#60;b&#62;",
)


class Page(HTMLParser):
    """Elements of a page in order, each with its attributes and the text inside it."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **{f"@{name}": value for name, value in attributes}}
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.found.append({"tag": tag, "text": "", **{f"@{name}": value for name, value in attributes}})

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag  # every element is closed where it should be

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [
            element
            for element in self.found
            if element["tag"] == tag and all(element.get(f"@{name}") == value for name, value in attributes.items())
        ]


def page_of(path):
    found = Page(path.read_text(encoding="utf-8"))
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("html") / "run"
    with dspy.context(adapter=toy.ADAPTER):
        toy.optimizer(folder).compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4, 12)))
    return folder


@pytest.fixture(scope="module")
def text(run_dir):
    return write_run_report(run_dir)[0].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    found = Page(text)
    assert found.open == []
    return found


# The page


def test_it_needs_nothing_but_itself(page):
    assert not [item for item in page.found if item["tag"] in ("script", "link", "iframe", "img", "object", "base")]
    for item in page.found:
        for name in ("@src", "@href", "@xlink:href"):
            assert item.get(name, "#").startswith("#")
    assert "url(http" not in page.all("style")[0]["text"]
    assert "@import" not in page.all("style")[0]["text"]


def test_links_and_labels_reach_elements_that_are_there_once(page):
    ids = [item["@id"] for item in page.found if "@id" in item]
    assert len(ids) == len(set(ids))
    wanted = {item["@href"][1:] for item in page.all("a")}
    wanted |= {item["@aria-labelledby"] for item in page.found if "@aria-labelledby" in item}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", str([item.values() for item in page.found])))
    wanted |= {item["@xlink:href"][1:] for item in page.found if "@xlink:href" in item}
    assert wanted <= set(ids)
    assert {"score", "growth", "repair", "cost", "flow", "runs"} <= set(ids)


def test_every_plot_is_drawn_and_has_a_name(page):
    drawn = [item for item in page.all("svg") if "@viewbox" in item]
    assert {item.get("@aria-label") for item in drawn} >= {"Validation score", "Runs added", "Failed runs in repair"}
    assert all(item.get("@role") == "img" for item in drawn)
    plots = page.all("figure", **{"class": "plot"})
    assert len(plots) == 4
    assert "doubler" in page.all("section", id="flow")[0]["text"]


def test_plots_take_their_colours_from_the_page(text):
    plots = re.findall(r'<figure class="plot">(.*?)</figure>', text, re.DOTALL)
    for plot in plots:
        used = set(re.findall(r"(?:fill|stroke): *(#\w+|var\(--\w+\))", plot))
        assert used
        assert all(colour.startswith("var(") for colour in used)
    for name in set(re.findall(r"var\(--(\w+)\)", text)):
        assert len(re.findall(rf"--{name}:", text)) == 2, f"--{name} has no value for light and dark"


def test_numbers_are_right_aligned_and_words_are_not(page):
    heads = {item["text"]: item.get("@class") for item in page.all("th")}
    assert heads["LM calls"] == heads["iteration"] == heads["95 % interval"] == "number"
    assert heads["agent"] is None


def test_the_same_run_gives_the_same_page(run_dir, text, tmp_path):
    assert write_run_report(run_dir, page=tmp_path / "again.html")[0].read_text(encoding="utf-8") == text


# The runs


def test_repaired_runs_are_shown_with_their_feedback(run_dir, page):
    stories = page.all("article")
    assert 1 <= len(stories) <= 10
    assert "Repaired by editing doubler" in stories[0]["text"]
    with ExperienceLibrary(RunDir(run_dir).library) as library:
        repaired = sorted(repair.parent for repair in library.repairs() if repair.repaired)
    shown = [item["text"] for item in stories if "Repaired by editing" in item["text"]]
    assert len(shown) == min(len(repaired), 7)
    for part in ("no idea", "double the number", "what would have been right", "ans:"):
        assert part in shown[0] + shown[-1]


def story_library(path, *, num_repaired, outcomes, raises=0):
    """A library with repaired runs of two agents by turns, and failures that end in `outcomes`."""
    library = ExperienceLibrary(path)
    for number in range(num_repaired):
        failed = make_run(f"no {number}", 0.0, run="r", iteration=1, sample=number)
        agent, position = (("analyst", 0), ("solver", 1))[number % 2]
        good = make_run("4", 1.0, run="r", iteration=1, origin="repair", parent=failed.id, edited=position)
        attempt = Attempt(position, agent, "repaired", "Look again", {"answer": "4"}, {"answer": "4"}, 1.0, good.id)
        library.add(failed)
        library.add_repair(Repair(failed.id, (attempt,), "r", 1), [good])
    sample = 100
    for outcome, count in outcomes.items():
        for _ in range(count):
            sample += 1
            library.add(make_run(outcome, 0.0, run="r", iteration=1, sample=sample))
    for _ in range(raises):
        sample += 1
        failure = Failure("AdapterParseError", f"no field {sample}")
        library.add(make_run("", 0.0, run="r", iteration=1, sample=sample, prediction=None, failure=failure))
    return library


def titles(folder, library):
    results = make_result(run="r", agents={"analyst": ("analyst",), "solver": ("solver",)})
    return [item["text"] for item in page_of(write_report(results, folder, library=library)[2]).all("h3")]


def test_agents_take_turns_and_the_most_frequent_failures_come_last(tmp_path):
    with story_library(tmp_path / "l.db", num_repaired=12, outcomes={"5": 2, "6": 4, "7": 1}, raises=3) as library:
        found = titles(tmp_path, library)
    assert len(found) == 10
    assert [title.split()[3].rstrip(",") for title in found[:7]] == ["analyst", "solver"] * 3 + ["analyst"]
    assert [title.partition(", iteration")[0] for title in found[7:]] == [
        "Wrong answer in 4 runs, not repaired",
        "Raised AdapterParseError in 3 runs, not repaired",
        "Wrong answer in 2 runs, not repaired",
    ]


def test_without_failures_repaired_runs_fill_the_list(tmp_path):
    with story_library(tmp_path / "l.db", num_repaired=12, outcomes={}) as library:
        assert len([title for title in titles(tmp_path, library) if title.startswith("Repaired")]) == 10


def test_the_order_of_writing_does_not_change_the_choice(tmp_path):
    outcomes = {"5": 3, "6": 3, "7": 3, "8": 1}
    with story_library(tmp_path / "a.db", num_repaired=9, outcomes=outcomes) as first:
        before = write_report(make_result(run="r"), tmp_path / "a", library=first)[2].read_text(encoding="utf-8")
        runs, repairs = list(first.trajectories()), list(first.repairs())
        with ExperienceLibrary(tmp_path / "b.db") as second:
            second.add_all(sorted(runs, key=lambda run: (run.origin == "repair", run.id)))
            for repair in reversed(repairs):
                second.add_repair(repair, [])
            after = write_report(make_result(run="r"), tmp_path / "b", library=second)[2].read_text(encoding="utf-8")
    assert Page(before).all("article") == Page(after).all("article")


# Texts that LMs write


@pytest.fixture
def hostile(tmp_path):
    """A report in which every text from data is hostile: names, inputs, outputs, feedback, labels, failures."""
    example = dspy.Example(question="\n".join(HOSTILE), answer=HOSTILE[0]).with_inputs("question")
    shared = {"run": HOSTILE[0], "iteration": 1, "example_key": example_key(example)}
    with ExperienceLibrary(tmp_path / "library.db") as library:
        for number, bad in enumerate(HOSTILE):
            steps = (
                make_step(bad[:60], 0, bad, inputs={bad[:60]: bad}),
                make_step("solver", 1, inputs={"question": [bad, {bad[:60]: bad}]}, outputs={bad[:60]: bad}),
            )
            failed = make_run(bad, 0.0, steps=steps, sample=number, failure=Failure(bad[:60], bad, bad), **shared)
            good = make_run("4", 1.0, steps=steps, origin="repair", parent=failed.id, edited=0, **shared)
            verdict = "repaired" if number % 2 else "leaked"
            attempt = Attempt(0, bad[:60], verdict, bad, {bad[:60]: bad}, {"x": bad}, 1.0, good.id, bad)
            library.add(failed, example)
            library.add(make_run(bad, 0.0, steps=steps, sample=number + 50, **shared), example)
            library.add_repair(Repair(failed.id, (attempt,), HOSTILE[0], 1), [good])
    names = [bad[:60].encode(errors="replace").decode() for bad in HOSTILE]
    agents = {name: AgentResult(rows=1, dropped={name: 1}, usage=UsageResult(1)) for name in names}
    entry = make_iteration(
        1, 0.5, num_val=2, agents=agents, seconds={"collect": 1.0}, stages={names[2]: UsageResult(1)}
    )
    results = make_result(
        [entry],
        run=HOSTILE[0],
        run_dir=HOSTILE[2],
        program=HOSTILE[2],
        reason=HOSTILE[2],
        agents={bad[:60]: (bad[:60],) for bad in HOSTILE},
    )
    test = HeldOutScores(tuple(ProgramScore(bad, 0.1, 3, (0.0, 1.0)) for bad in HOSTILE))
    with ExperienceLibrary(tmp_path / "library.db") as library:
        report = Report(results, read_experience(library, results), test)
    markdown, html = tmp_path / "report.md", tmp_path / "report.html"
    markdown.write_text(render_markdown(report), encoding="utf-8", errors="replace")
    html.write_text(render_html(report), encoding="utf-8", errors="replace")
    return markdown, html


def test_hostile_texts_stay_texts(hostile):
    page = page_of(hostile[1])
    assert page.all("script") == page.all("img") == []
    assert not [name for item in page.found for name in item if name.startswith("@on")]
    assert len(page.all("style")) == 1 + len(page.all("figure", **{"class": "plot"}))  # Matplotlib puts one into each
    body = page.all("body")[0]["text"]
    for bad in HOSTILE[:4]:
        assert bad in body
    assert "49" not in page.all("section", id="test")[0]["text"].split("0.1000")[3]
    assert HOSTILE[7] in body


def test_long_texts_are_folded_and_directions_are_their_own(hostile):
    page = page_of(hostile[1])
    folded = [item for item in page.all("details") if "x" * 20_000 in item["text"]]
    assert folded
    assert all("@open" not in item for item in folded if not item["text"].strip().startswith("what would"))
    assert "(20000 characters)" in page.all("body")[0]["text"]
    texts = [item for item in page.all("div") if (item.get("@class") or "") == "text"]
    assert texts
    assert all(item["@dir"] == "auto" for item in texts)


def test_hostile_texts_do_not_break_a_markdown_table(hostile):
    lines = hostile[0].read_text(encoding="utf-8").splitlines()
    section = lines[lines.index("## What each agent learned") :]
    rows = [line for line in section if line.startswith("|")][2 : 2 + len(HOSTILE)]
    assert all(line.count(" | ") == 3 for line in rows)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("`*_[](){}#+-.!|~<>&;\\$\"'=:/ \n\r\u2028ab1"), min_size=1, max_size=30))
def test_any_text_is_shown_in_markdown_as_it_is(text):
    assume(text.strip())
    entry = make_iteration(agents={text: AgentResult(rows=1)})
    markdown = render_markdown(Report(make_result([entry], run=text, run_dir=text)))
    shown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown)
    lines = [token.children for token in shown if token.children]
    expected = " ".join(re.split("[\n\r\u2028]+", text))
    codes = [children[-1].content for children in lines if children[-1].type == "code_inline"]
    assert [code.strip() for code in codes[:2]] == [expected.strip()] * 2
    cells = ["".join(token.content for token in children) for children in lines if text_only(children)]
    assert expected.strip() in cells
    assert not [token for token in shown if token.type.startswith("html")]


def text_only(children):
    return all(token.type in ("text", "text_special", "entity") for token in children)
