"""No answer is paid for twice: a compile that stops anywhere keeps the calls of the runs that were under way."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import dspy
import pytest

from sirius_dspy import ExperienceLibrary
from sirius_dspy.running.journal import CallJournal, call_key, current_journal, keep_calls, use_journal
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Sampling
from sirius_dspy.testing import ScriptedLM, chat_reply
from sirius_dspy.trajectory import Failure, Step, Usage
from tests import ROOT
from tests.counted import asked_and_answered

ANSWERED = Step(
    "solver",
    2,
    {"question": "?"},
    {"answer": "4", "odd": "\ud800"},
    "openai/x",
    usage=Usage(1, 20, 3),
    seconds=0.5,
    num_demos=2,
    others=({"answer": "5", "odd": ""},),
    prompt="[]",
    finish="stop",
)
UNPARSED = Step("solver", 0, {}, None, "openai/y", Failure("AdapterParseError", "no field", "4"), usage=Usage(2, 9, 9))


def kept(path: Path, **steps: Step) -> CallJournal:
    journal = CallJournal(path)
    for key, step in steps.items():
        journal.keep(key, step)
    journal.close(delete=False)
    return CallJournal(path)


def test_what_is_kept_is_found_again(tmp_path):
    journal = kept(tmp_path / "calls" / "a.jsonl", first=ANSWERED, second=UNPARSED)
    for key, step in {"first": ANSWERED, "second": UNPARSED}.items():
        found = journal.find(key)
        for name in ("outputs", "others", "lm", "failure", "usage", "seconds", "num_demos", "prompt", "finish"):
            assert getattr(found, name) == getattr(step, name), name
    assert journal.find("third") is None
    assert journal.usage == {"openai/x": Usage(1, 20, 3), "openai/y": Usage(2, 9, 9)}


def test_a_line_that_was_cut_short_costs_only_itself(tmp_path):
    path = tmp_path / "a.jsonl"
    kept(path, first=ANSWERED, second=UNPARSED)
    for length in range(path.stat().st_size):
        cut = tmp_path / f"cut-{length}.jsonl"
        cut.write_bytes(path.read_bytes()[:length])
        journal = kept(cut, third=UNPARSED)
        assert journal.find("third") == CallJournal(path).find("second")
        assert journal.find("first") in (None, CallJournal(path).find("first"))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"{}", b'["key", []]', b'["key", {"lm": 1}]', b"null"])
def test_what_is_no_journal_is_passed_over(content, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert CallJournal(path).find("key") is None


def test_a_disk_that_takes_nothing_ends_no_run(tmp_path, caplog):
    (tmp_path / "calls").write_text("a file where the folder should be", encoding="utf-8")
    journal = CallJournal(tmp_path / "calls" / "a.jsonl")
    with caplog.at_level(logging.WARNING):
        journal.keep("first", ANSWERED)
        journal.keep("second", ANSWERED)
    journal.close(delete=True)
    assert len([record for record in caplog.records if "cannot be kept" in record.message]) == 1


def test_the_file_goes_when_all_is_done_and_stays_after_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    for error in (None, KeyboardInterrupt(), ValueError()):
        try:
            with keep_calls(path):
                current_journal().keep("key", ANSWERED)
                if error is not None:
                    raise error
        except (KeyboardInterrupt, ValueError):
            pass
        assert path.exists() == (error is not None)
        assert current_journal() is None


def ask(path: Path, *samplings: Sampling, lm: dspy.LM | None = None) -> list[str]:
    """What a predictor answers under each sampling, with the calls of earlier processes at hand."""
    program, journal = dspy.Predict("question -> answer"), CallJournal(path)
    program.set_lm(lm or ScriptedLM([chat_reply(answer=word) for word in ("first", "second", "third")]))
    with use_journal(journal):
        found = [record(program, {"question": "?"}, sampling).prediction.answer for sampling in samplings]
    journal.close(delete=False)
    return found


def test_what_is_asked_otherwise_is_asked_again(tmp_path):
    """Two rungs of a ladder may name a sample alike, and yet ask with other arguments or demonstrations."""
    demos = {"self": [dspy.Example(question="!", answer="yes")]}
    three = Sampling("s", {"temperature": 0.3}), Sampling("s", {"temperature": 1.3}), Sampling("s", {}, demos)
    assert ask(tmp_path / "a.jsonl", *three) == ["first", "second", "third"]
    assert ask(tmp_path / "a.jsonl", *three, lm=ScriptedLM([])) == ["first", "second", "third"]
    warmer = ScriptedLM([chat_reply(answer="new")], temperature=0.9)
    assert ask(tmp_path / "a.jsonl", three[2], lm=warmer) == ["new"]
    nameless = ScriptedLM([chat_reply(answer="new")])
    assert ask(tmp_path / "a.jsonl", Sampling(), lm=nameless) == ["new"]


def test_a_server_may_move():
    def key(**settings: object) -> str:
        lm = SimpleNamespace(model="openai/m", kwargs={"temperature": 0.5, **settings})
        return call_key("s", ("solver", "{}", 0), "signature", lm, {}, [])

    assert key(api_base="http://a/v1", api_key="one") == key(api_base="http://b/v1", api_key="two")
    assert key() != key(max_tokens=9)


def compile_in_child(folder: Path, *, fail_from: int = 0, kill_at: int = 0, expected: int) -> str:
    command = [sys.executable, "-m", "tests.counted", "run", "log", str(fail_from), str(kill_at)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == expected, done.stderr[-3000:]
    return done.stderr


def ids_of(folder: Path) -> set[str]:
    with ExperienceLibrary.existing(folder / "run" / "library.sqlite") as library:
        assert library.verify() == []
        return {entry.id for entry in library.entries()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[set[str], dict[str, int]]:
    """The ids of all runs, and the requests, if nothing comes between."""
    folder = tmp_path_factory.mktemp("undisturbed")
    compile_in_child(folder, expected=0)
    assert list((folder / "run").glob("calls/*")) == []
    return ids_of(folder), asked_and_answered(folder / "log")[0]


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [12, 33, 52, 75])
def test_a_kill_repeats_only_the_calls_in_flight(kill_at, tmp_path, undisturbed):
    compile_in_child(tmp_path, kill_at=kill_at, expected=-9)
    in_flight = asked_and_answered(tmp_path / "log")
    compile_in_child(tmp_path, expected=0)
    assert ids_of(tmp_path) == undisturbed[0]
    asked, answered = asked_and_answered(tmp_path / "log")
    unanswered = in_flight[0] - in_flight[1]
    assert 1 <= unanswered.total() <= 4
    # A call may have been answered in the moment of the kill, before it was kept.
    assert (asked - undisturbed[1]).total() <= 4
    assert all(asked[note] >= number for note, number in undisturbed[1].items())
    assert (answered - undisturbed[1]).total() <= 4 - unanswered.total()


@pytest.mark.slow
@pytest.mark.parametrize("fail_from", [3, 40])
def test_after_a_failing_server_no_answered_call_is_made_again(fail_from, tmp_path, undisturbed):
    compile_in_child(tmp_path, fail_from=fail_from, expected=1)
    compile_in_child(tmp_path, expected=0)
    assert ids_of(tmp_path) == undisturbed[0]
    assert asked_and_answered(tmp_path / "log")[1] == undisturbed[1]
