"""RichProgress on a pretended terminal and on a pipe; what a person would read is what is compared."""

import dataclasses
import io
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from sirius_dspy.testing.results import make_iteration, make_result
from sirius_dspy.tracking.events import (
    CompileEnded,
    CompileStarted,
    Curated,
    Evaluated,
    IterationEnded,
    Repaired,
    RolledOut,
    StageStarted,
    Tracker,
    Trackers,
    Trained,
    TrainingProgress,
)
from sirius_dspy.tracking.progress import RichProgress
from sirius_dspy.trajectory import Attempt, Repair, Step, Trajectory, Usage
from tests import ROOT

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def started(trainset=()):
    return CompileStarted(
        run="r",
        program="Team",
        run_dir=Path("runs/x"),
        library_url="sqlite:///library.db",
        params={},
        agents={"a[red]": ["a"], "b": ["b"]},
        lms={},
        adapter="ChatAdapter",
        num_train=len(trainset) or 3,
        num_val=1,
        trainset=trainset,
        valset=[],
        resumed=False,
    )


def trajectory(reward, prompt_tokens=100):
    step = Step("a", 0, {}, {}, "lm", usage=Usage(calls=1, prompt_tokens=prompt_tokens, completion_tokens=5))
    return Trajectory("e", (step,), None, reward)


def attempt(verdict):
    return Attempt(0, "a", verdict, usage=Usage(calls=3, prompt_tokens=30, completion_tokens=3))


def drive(tracker):
    """One iteration: 3 rollouts of which 2 succeed, 1 repair, 2 training sets, 2 fine-tunes in threads, 1 score."""
    tracker.on_compile_started(started())
    tracker.on_stage_started(StageStarted(1, "collect", 3))
    for reward in (1.0, 0.0, 1.0):
        tracker.on_rolled_out(RolledOut(1, trajectory(reward), reward >= 1.0))
    tracker.on_stage_started(StageStarted(1, "repair", 1))
    tracker.on_repaired(Repaired(1, Repair("t", (attempt("failed"), attempt("repaired"))), [trajectory(1.0)]))
    tracker.on_stage_started(StageStarted(1, "curate", 2))
    tracker.on_curated(Curated(1, "a[red]", 1, {"cut off": 2, "too long": 1}, Path("a.jsonl")))
    tracker.on_curated(Curated(1, "b", 2, {}, Path("b.jsonl")))
    tracker.on_stage_started(StageStarted(1, "train", 2))
    for agent in ("a[red]", "b"):
        job = threading.Thread(target=tracker.on_training_progress, args=(TrainingProgress(1, agent, 1, 2, 2.5),))
        job.start()
        job.join()
        tracker.on_trained(Trained(1, agent, "base", "new", 1, [2.5, 0.75], 1.0, None))
    tracker.on_stage_started(StageStarted(1, "evaluate", 1))
    tracker.on_rolled_out(RolledOut(1, trajectory(0.0), False))
    tracker.on_evaluated(Evaluated(1, 0.25, 1, "program"))
    tracker.on_iteration_ended(IterationEnded(make_iteration()))
    tracker.on_compile_ended(CompileEnded("finished", make_result()))


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=200)


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def lines(console):
    """What was written, without times."""
    return [re.sub(r"\d+(\.\d+)? s\b", "? s", line) for line in console.file.getvalue().splitlines()]


EXPECTED = [
    "Compiling 2 agents on 3 examples",
    "iteration 1 collect: 3 of 3, 2 succeeded, 3 LM calls, 315 tokens, ? s",
    "iteration 1 repair: 1 of 1, 1 succeeded, 7 LM calls, 171 tokens, ? s",
    "iteration 1 curate: a[red]: 1 row, 3 steps dropped",
    "iteration 1 curate: b: 2 rows",
    "iteration 1 train: a[red]: 1 row, loss 2.500 to 0.750, ? s",
    "iteration 1 train: b: 1 row, loss 2.500 to 0.750, ? s",
    "iteration 1 evaluate: 1 of 1, 0 succeeded, score 0.250 (program), 1 LM call, 105 tokens, ? s",
    "Compile finished after ? s, best is iteration 1, 11 LM calls, 591 tokens",
]


def test_a_pipe_gets_one_plain_line_per_stage_whatever_its_width(pipe):
    drive(RichProgress(pipe))
    assert lines(pipe) == EXPECTED
    assert "\x1b" not in pipe.file.getvalue()


def test_a_terminal_keeps_the_same_lines_and_gets_its_cursor_back(terminal):
    drive(RichProgress(terminal))
    written = terminal.file.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    plain = re.sub(r"\d+(\.\d+)? s\b", "? s", plain)
    for line in EXPECTED:
        assert line in plain
    assert HIDE in written
    assert written.rindex(SHOW) > written.rindex(HIDE)


def test_the_live_line_shows_counts_and_the_loss_while_training(terminal):
    progress = RichProgress(terminal)
    progress.on_compile_started(started())
    progress.on_stage_started(StageStarted(2, "train", 2))
    progress.on_training_progress(TrainingProgress(2, "a[red]", 15, 30, 1.234))
    progress.on_compile_ended(CompileEnded("failed", make_result([])))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue())
    assert "iteration 2 train: 0 of 2, a[red]: step 15 of 30, loss 1.234" in plain
    assert "Compile failed" in plain


def test_the_student_is_named_at_iteration_zero(pipe):
    progress = RichProgress(pipe)
    progress.on_compile_started(started())
    progress.on_stage_started(StageStarted(0, "evaluate", 0))
    progress.on_compile_ended(CompileEnded("interrupted", make_result([])))
    assert lines(pipe)[1:] == ["student evaluate: 0 of 0, ? s", "Compile interrupted after ? s"]


def test_equal_examples_are_counted_once_more(pipe):
    progress = RichProgress(pipe)
    progress.on_compile_started(started([{"question": str(number % 8)} for number in range(20)]))
    progress.on_compile_ended(CompileEnded("finished", make_result([])))
    assert lines(pipe)[0] == "Compiling 2 agents on 20 examples, 8 distinct"


def test_runs_that_a_cache_answered_are_told_from_the_others(pipe):
    progress = RichProgress(pipe)
    progress.on_compile_started(started())
    progress.on_stage_started(StageStarted(1, "collect", 2))
    progress.on_rolled_out(RolledOut(1, trajectory(1.0), True))
    progress.on_rolled_out(RolledOut(1, Trajectory("e", (Step("a", 0, {}, {}, "lm"),), None, 1.0), True))
    progress.on_compile_ended(CompileEnded("finished", make_result([])))
    expected = "iteration 1 collect: 2 of 2, 2 succeeded, 1 from DSPy's cache, 1 LM call, 105 tokens, ? s"
    assert lines(pipe)[1] == expected


def test_the_results_say_how_long_it_took(pipe):
    progress = RichProgress(pipe)
    progress.on_compile_started(started())
    progress.on_compile_ended(CompileEnded("finished", dataclasses.replace(make_result([]), seconds=61.2)))
    assert pipe.file.getvalue().splitlines()[-1] == "Compile finished after 61 s"


def test_one_tracker_can_follow_several_compiles(pipe):
    progress = RichProgress(pipe)
    drive(progress)
    drive(progress)
    assert lines(pipe) == EXPECTED * 2


def test_events_without_a_compile_are_ignored(pipe):
    progress = RichProgress(pipe)
    progress.on_rolled_out(RolledOut(1, trajectory(1.0), True))
    progress.on_training_progress(TrainingProgress(1, "b", 1, 2, 2.5))
    progress.on_compile_ended(CompileEnded("finished", make_result([])))
    assert lines(pipe) == []


def test_many_threads_report_at_once_without_losing_a_count(pipe):
    progress = RichProgress(pipe)
    progress.on_compile_started(started())
    progress.on_stage_started(StageStarted(1, "collect", 400))
    event = RolledOut(1, trajectory(1.0), True)
    threads = [threading.Thread(target=lambda: [progress.on_rolled_out(event) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.on_compile_ended(CompileEnded("finished", make_result([])))
    assert lines(pipe)[1] == "iteration 1 collect: 400 of 400, 400 succeeded, 400 LM calls, 42,000 tokens, ? s"


class BrokenFile(io.StringIO):
    broken = False

    def write(self, text):
        if self.broken and HIDE not in text and SHOW not in text:
            raise OSError("no space left on device")
        return super().write(text)


def test_a_display_that_fails_gives_the_terminal_back_and_the_others_go_on():
    file = BrokenFile()
    heard = []

    class Listener(Tracker):
        def on_compile_ended(self, event):
            heard.append(event.status)

    trackers = Trackers([RichProgress(Console(file=file, force_terminal=True)), Listener()])
    trackers.on_compile_started(started())
    trackers.on_stage_started(StageStarted(1, "collect", 1))
    file.broken = True
    trackers.on_stage_started(StageStarted(1, "repair", 1))
    file.broken = False
    trackers.on_compile_ended(CompileEnded("finished", make_result([])))
    assert heard == ["finished"]
    assert len(trackers.trackers) == 2
    assert file.getvalue().rindex(SHOW) > file.getvalue().rindex(HIDE)


PROGRAM = """
import sys
from rich.console import Console
from tests.test_progress import RichProgress, StageStarted, drive, started
if {interrupted}:
    progress = RichProgress(Console(stderr=True, force_terminal=True))
    progress.on_compile_started(started())
    progress.on_stage_started(StageStarted(1, "collect", 1))
    sys.stdout.write("a result")
    raise KeyboardInterrupt
drive(RichProgress())
sys.stdout.write("{{}}")
"""


def run(*, interrupted):
    source = PROGRAM.format(interrupted=interrupted)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, check=False)


def test_stdout_stays_clean():
    process = run(interrupted=False)
    assert process.stdout == "{}"
    assert "iteration 1 collect: 3 of 3" in process.stderr


def test_an_interrupt_nobody_reports_gives_the_cursor_back_and_stdout_stays_clean_on_a_terminal():
    process = run(interrupted=True)
    assert process.stdout == "a result"
    assert process.returncode != 0
    assert HIDE in process.stderr
    assert process.stderr.rindex(SHOW) > process.stderr.rindex(HIDE)
