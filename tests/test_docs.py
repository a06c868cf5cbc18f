"""docs/: every snippet runs, every command exists, and the site is whole and needs no network.

All pages share one folder, in which the README's quickstart seems to have run: with `reviews.py`, `runs/reviews` and
its checkpoint. Files run there in order. Other Python blocks leave an `optimizer`, which must improve the README's
program, or a `program` with `metric` and `trainset`, which must be improved by a compile, or they just run. A text
block right behind a file is what it prints.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import unquote, urlsplit

import dspy
import pytest
import typer
from typer.testing import CliRunner

import sirius_dspy
from sirius_dspy import Collect, LocalLM, SiriuS, errors, save
from sirius_dspy.cli import app
from sirius_dspy.library.schema import METADATA
from sirius_dspy.testing import ToyLM, chat_reply
from tests import ROOT
from tests.serve_help import FakeBackend, serving
from tests.snippets import blocks_of, commands_of, files_of, guess, hosted_api, run, run_hosted

__all__ = ["hosted_api"]  # pytest finds fixtures by their names in the module

pytestmark = pytest.mark.docs

PAGES = {path.relative_to(ROOT / "docs").as_posix(): blocks_of(path) for path in sorted((ROOT / "docs").rglob("*.md"))}
FILES = {name: block for blocks in PAGES.values() for name, block in files_of(blocks).items()}
CODE = [
    pytest.param(block.code, id=f"{page}-{number}")
    for page, blocks in PAGES.items()
    for number, block in enumerate(blocks)
    if block.language == "python" and not block.file
]
COMMANDS = [pytest.param(line, id=f"{page}: {line}") for page in PAGES for line in commands_of(PAGES[page])]
OUTPUTS = {
    block.file: output.code
    for blocks in PAGES.values()
    for block, output in pairwise(blocks)
    if block.file and output.language == "text"
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader would work, after the quickstart."""
    path = tmp_path_factory.mktemp("docs")
    for name, block in {**files_of(blocks_of(ROOT / "README.md")), **FILES}.items():
        (path / name).write_text(block.code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, dspy.context(adapter=dspy.ChatAdapter()):
        _enter(path, patch)
        compiled = _improve(SiriuS(_reviews().metric, iterations=1, run_dir="runs/reviews"))
        save(compiled, "runs/reviews/checkpoint")
    return path


@pytest.fixture
def inside(folder, monkeypatch):
    """The reader's folder as the working directory; what was imported from it is forgotten afterwards."""
    _enter(folder, monkeypatch)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def _enter(folder, patch):
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))


def _reviews():
    import reviews

    return reviews


def _improve(optimizer):
    """Compile the README's program on an LM that learns by heart."""
    reviews = _reviews()
    program = reviews.Reviews()
    program.set_lm(ToyLM(skill=guess))
    asked = dspy.Example(review="The lamp is great. I bought it in May. It came on Monday.", verdict="good")
    examples = [*reviews.examples(12, seed=1), asked.with_inputs("review")]  # a loaded LM knows what it learnt, no more
    compiled = optimizer.compile(program, trainset=examples, valset=examples)
    start, *trained = [entry["score"] for entry in compiled.detailed_results["iterations"]]
    assert start < trained[0]
    return compiled


# Files


def test_file_names_are_unique():
    names = [name for blocks in PAGES.values() for name in files_of(blocks)]
    assert sorted(names) == sorted(FILES)
    assert not set(names) & set(files_of(blocks_of(ROOT / "README.md")))


RUN = [name for name in FILES if not name.startswith("test_")]
MARKS = {"local": [pytest.mark.local, pytest.mark.timeout(900)]}  # one of them trains, like the quickstart


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(FILES[name].needs, [])) for name in RUN])
def test_a_file_runs(name, inside, request, capsys):
    if FILES[name].needs == "hosted":
        url = request.getfixturevalue("hosted_api").url
        printed = run_hosted(inside, name, url, VLLM_URL=url)
    elif FILES[name].needs == "serve":
        backend = FakeBackend()
        backend.models = ("smollm2-135m-instruct",)
        with serving(inside / "served", backend) as client:
            printed = run(inside, name, SERVER_URL=str(client.base_url))
        assert printed == "succeeded\nYou said: 2 + 1 I learned from 16 rows.\n"
    else:
        if FILES[name].needs == "local":
            _put_model(inside / "models" / "mine.gguf")
        runpy.run_path(name, run_name="__main__")
        printed = capsys.readouterr().out
    assert name not in OUTPUTS or printed == OUTPUTS[name]


def _put_model(path):
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.symlink_to(LocalLM("smollm2-135m-instruct").path)


def test_the_pages_tests_pass(folder):
    tests = [name for name in FILES if name.startswith("test_")]
    printed = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", *tests)
    assert re.search(r"\d+ passed", printed)
    assert "failed" not in printed


# Code


@pytest.mark.parametrize("code", CODE)
def test_code_does_what_the_page_says(code, inside, tmp_path, capsys):
    names = {"__name__": "docs"}
    exec(compile(code, "docs", "exec", dont_inherit=True), names)
    if "optimizer" in names:
        names["optimizer"].run_dir, names["optimizer"].iterations = tmp_path, 1
        _improve(names["optimizer"])
        assert "Printer" not in names or "iteration 1: " in capsys.readouterr().out
    elif "program" in names:
        _check_program(names["program"], names["metric"], names["trainset"], tmp_path)


def _check_program(program, metric, trainset, run_dir):
    """Every agent gets rows, and the program is better where agents do not play against each other."""
    skill = SKILLS[type(program).__name__]
    program.set_lm(ToyLM(skill=skill))
    collect = Collect(samples=8)
    optimizer = SiriuS(metric, iterations=1, collect=collect, augmenter=None, gate=None, run_dir=run_dir)
    compiled = optimizer.compile(program, trainset=trainset, valset=trainset)
    before, after = compiled.detailed_results["iterations"]
    assert all(entry["rows"] for entry in after["agents"].values())
    if skill is not play:
        assert before["score"] < after["score"]


def knows(prompt):
    return bool(prompt.seed and prompt.seed % 2)


def spell(prompt):
    word = prompt.field("word")
    verdict = "palindrome" if word == word[::-1] else "no palindrome"
    answers = {"length": len(word), "backwards": word[::-1], "verdict": verdict if knows(prompt) else "unsure"}
    return _reply(prompt, answers)


def walk(prompt):
    move = "up" if int(prompt.field("floor")) < int(prompt.field("target")) else "down"
    return _reply(prompt, {"move": move if prompt.seed and prompt.seed % 4 else "stay"})


def sort_letters(prompt):
    is_bill = "paid" in prompt.field("letter")
    reply = "We refund it." if is_bill else "Send it in."
    answers = {"desk": "billing" if is_bill else "repairs", "reasoning": "It says so."}
    return _reply(prompt, answers | {"reply": reply if knows(prompt) else "Well, well."})


def sell(prompt):
    thing = re.search(r"does a (\w+) cost", prompt.field("question"))[1]
    price = next(iter(re.findall(r"observation_0 ## \]\]\s*(\d+)", prompt.user)), "0")
    answers = {"next_thought": "Look it up.", "next_tool_name": "finish" if price != "0" else "price"}
    answers["next_tool_args"] = "{}" if price != "0" else f'{{"thing": "{thing}"}}'
    return _reply(prompt, answers | {"reasoning": "It says so.", "answer": price if knows(prompt) else "1"})


def read(prompt):
    found = re.search(r"(?:It is )?(Ada|Bo|Lena)", prompt.field("text"))
    return _reply(prompt, {"answer": found[1] if found and knows(prompt) else "nobody"})


def play(prompt):
    return _reply(prompt, {"number": 1 + (prompt.seed or 0) % int(prompt.field("limit"))})


def _reply(prompt, answers):
    return chat_reply(**{name: value for name, value in answers.items() if prompt.asks_for(name)})


SKILLS = {"AgentGraph": spell, "Walk": walk, "Desk": sort_letters, "Shop": sell, "Panel": read, "Guess": play}
"""What the LM of each program on the pages can do at first; it is right now and then."""


# Commands

ELSEWHERE = {"curl", "llama-server", "ollama", "pip", "vllm"}
"""Programs that are not installed here, or are not ours to check."""


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_exists(line):
    program, *arguments = _words(line)
    if program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True, timeout=60)
    elif program == "python":
        assert importlib.util.find_spec(arguments[1]) if arguments[0] == "-m" else arguments[0] in FILES
    elif program == "mlflow":
        names = [word for word in arguments[:2] if not word.startswith("-")]
        _check_options(arguments, re.findall(r"--?[\w-]+", run(ROOT, "-m", "mlflow", *names, "--help")))
    elif program not in ELSEWHERE:
        assert program == "sirius-dspy", f"{program} needs a check of its own"
        command, arguments = _subcommand(typer.main.get_command(app), arguments)
        _check_options(arguments, {name for item in command.params for name in (*item.opts, *item.secondary_opts)})


def _words(line):
    """The words of a shell line, without variables that are set before the program."""
    words = shlex.split(line)
    while "=" in words[0]:
        words = words[1:]
    return words


def _subcommand(command, arguments):
    """The innermost command that the words name, and the words that are left."""
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, f"no command {arguments[0]!r} in {sorted(command.commands)}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return command, arguments


def _check_options(arguments, valid):
    assert {word.split("=")[0] for word in arguments if word.startswith("-")} <= set(valid)


OURS = [param for param in COMMANDS if re.match(r"sirius-dspy (report|library)\b", param.values[0])]


@pytest.mark.parametrize("line", OURS)
def test_a_command_of_ours_works_after_the_quickstart(line, inside):
    done = CliRunner().invoke(app, _words(line)[1:])
    assert done.exit_code == 0, done.output
    assert done.output


# The site


FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
LINKED = {"stylesheet", "icon", "preload", "preconnect", "modulepreload", "dns-prefetch", "manifest"}


class Page(HTMLParser):
    """What a page refers to, and what it can be referred to by."""

    def __init__(self, text):
        super().__init__()
        self.links, self.fetched, self.ids, self.classes = [], [], set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given.get("id"), given.get("name")}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and given.get(FETCHED[tag]):
            self.fetched.append(given[FETCHED[tag]])
        if tag == "link" and set(given.get("rel", "").split()) & LINKED:
            self.fetched.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with warnings as errors."""
    path = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_internal_link_leads_somewhere(site, pages):
    broken = [
        f"{path.relative_to(site)}: {link}"
        for path, page in pages.items()
        if path.name != "404.html"  # its links begin at the root of a server
        for link in (*page.links, *page.fetched)
        if not _leads_somewhere(path, link, pages)
    ]
    assert broken == []


def _leads_somewhere(path, link, pages):
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    return target.is_file() and (not parts.fragment or target.suffix != ".html" or _has(pages[target], parts.fragment))


def _has(page, fragment):
    return unquote(fragment) in page.ids


def test_no_page_fetches_anything_from_the_network(site, pages):
    outside = {link for page in pages.values() for link in page.fetched if urlsplit(link).netloc}
    styles = "\n".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert outside == set()
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]+", styles) == []
    # The theme's script loads Mermaid from elsewhere where a page has such a picture.
    assert not any("mermaid" in page.classes for page in pages.values())


def test_the_storage_page_has_every_table_and_column(site):
    text = (site / "storage" / "index.html").read_text(encoding="utf-8")
    for table in METADATA.tables.values():
        section = text.split(f'id="{table.name}"')[1].split("</table>")[0]
        assert [name for name in table.columns.keys() if f"<code>{name}</code>" not in section] == []  # noqa: SIM118
        assert f"CREATE TABLE {table.name}" in re.sub(r"<[^>]+>", "", text)


def test_the_reference_has_every_public_name(pages):
    ids = set().union(*(page.ids for page in pages.values()))
    raised = {f"sirius_dspy.errors.{name}" for name, value in vars(errors).items() if _is_defined(value)}
    names = [name for name in sirius_dspy.__all__ if not inspect.ismodule(getattr(sirius_dspy, name))]
    assert [name for name in names if ids.isdisjoint(_addresses(name))] == []
    assert raised <= ids


def _is_defined(value):
    return isinstance(value, type) and value.__module__ == errors.__name__


def _addresses(name):
    """The public path of a name, and the one of its definition."""
    return {f"{getattr(sirius_dspy, name).__module__}.{name}", f"sirius_dspy.{name}"}


def test_pictures_are_drawn(site):
    drawn = {path.stem for path in (site / "figures").glob("*.svg")}
    assert drawn >= {"agent", "step", "trajectory", "library", "repair", "iteration", "tables"}
    assert "edited" in (site / "figures" / "repair.svg").read_text(encoding="utf-8")
