"""What a compile writes on stderr without being asked."""

import dataclasses
import io
import logging
import sys
import warnings

import dspy
import pytest

from sirius_dspy import LocalLM, PlainAdapter, SiriuS, Tracker, evaluate
from sirius_dspy.errors import NoSuccessError
from tests import toy


class Terminal(io.StringIO):
    def isatty(self):
        return True


def compile_toy(run_dir, **settings):
    with dspy.context(adapter=toy.ADAPTER):
        toy.optimizer(run_dir, iterations=1, **settings).compile(
            toy.student(), trainset=toy.examples(), valset=toy.examples(range(4, 12))
        )


def test_a_terminal_shows_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    compile_toy(tmp_path)
    assert "iteration 1 collect: 16 of 16" in sys.stderr.getvalue()
    assert "Compile finished" in sys.stderr.getvalue()


def test_a_tracker_takes_the_place_of_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    compile_toy(tmp_path, tracker=Tracker())
    assert sys.stderr.getvalue() == ""


def test_a_pipe_stays_quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    compile_toy(tmp_path)
    assert sys.stderr.getvalue() == ""


def cut_off_writers(program):
    """Let each reply of the writer end at the token limit."""
    lm = program.writer.predict.lm
    respond = lm.engine._respond

    def respond_cut(prompt):
        response = respond(prompt)
        return dataclasses.replace(response, finish_reason="length") if prompt.asks_for("answer") else response

    lm.engine._respond = respond_cut
    return program


def test_replies_that_were_cut_off_are_one_line_per_stage(tmp_path, caplog):
    student = cut_off_writers(toy.student())
    with dspy.context(adapter=toy.ADAPTER), pytest.raises(NoSuccessError):
        toy.optimizer(tmp_path, iterations=1, frozen=["doubler"]).compile(
            student, trainset=toy.examples(), valset=toy.examples(range(4, 12))
        )
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    # 7 has no answer that parses, so its two samples never reach the writer.
    assert lines[:2] == [
        "Student, evaluate: 7 of 15 replies were cut off at the LM's `max_tokens`; they become no training rows.",
        "Iteration 1, collect: 14 of 30 replies were cut off at the LM's `max_tokens`; they become no training rows.",
    ]


def test_an_evaluation_reports_cut_replies_in_one_line(caplog):
    with dspy.context(adapter=toy.ADAPTER):
        evaluate(cut_off_writers(toy.student()), toy.examples(range(0, 6, 2)), toy.exact)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == ["3 of 6 replies were cut off at the LM's `max_tokens`."]


def test_dspy_warns_again_after_a_compile(tmp_path, caplog):
    program = cut_off_writers(toy.student())
    compile_toy(tmp_path)
    with dspy.context(adapter=toy.ADAPTER):
        program(number=2)
    assert "LM response was truncated" in caplog.text


@pytest.mark.local
@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.XMLAdapter(), PlainAdapter()])
def test_an_embedded_model_wants_the_plain_adapter(adapter, tmp_path):
    student = toy.student()
    student.set_lm(LocalLM())
    optimizer = SiriuS(toy.exact, run_dir=tmp_path)
    with dspy.context(adapter=adapter), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.plan(student, trainset=toy.examples(), valset=toy.examples())
    shown = [str(warning.message) for warning in caught if "PlainAdapter" in str(warning.message)]
    assert len(shown) == (0 if isinstance(adapter, PlainAdapter) else 1)
