"""`sirius-dspy demo` shows the loop on this machine, `sirius-dspy ask` asks its outcome."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import sirius_dspy
from sirius_dspy.checkpoint.naming import build_at
from sirius_dspy.cli.console import JsonFlag, complain, ending_cleanly, new_table, percent, stdout_kept_clean
from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.mlflow import MLflowTracker
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.plain import readable
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Recording
from sirius_dspy.tracking.events import Trackers
from sirius_dspy.tracking.progress import RichProgress
from sirius_dspy.trajectory import Step, to_plain

if TYPE_CHECKING:
    from programs.demo import DemoResult

_QUICK = {"train_items": 16, "validation_items": 8, "test_items": 10, "iterations": 1, "samples": 2}
"""Sizes that go through every stage in about a minute; too small to learn much."""


def demo(
    seed: Annotated[int, typer.Option(help="Of data, sampling and training.", min=0)] = 0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run keeps its work; by default `runs/demo-seed-N`.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A minute's run on few examples: works, learns little.")] = (
        False
    ),
    as_json: JsonFlag = False,
) -> None:
    """Let a two-agent program teach itself on this machine, and show who learnt what.

    The same command goes on from an interrupted run, and reuses a finished one.
    """
    folder = run_dir or Path("runs") / f"demo{'-quick' * quick}-seed-{seed}"
    notes = Console(stderr=True)
    with ending_cleanly(f"Run the same command again to go on from {str(folder)!r}."):
        tracker = MLflowTracker()
        with stdout_kept_clean():
            result = _run_demo(notes, folder, seed, tracker, quick=quick)
        shown = notes if as_json else Console()
        for table in _tables(result):
            shown.print(table)
        _print_next_steps(shown, result, tracker)
        if as_json:
            typer.echo(json.dumps(result.to_dict()))


def ask(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that `sirius_dspy.save` or the demo wrote.")],
    question: Annotated[str, typer.Option(help="The program's input `question`.")],
    program: Annotated[
        str, typer.Option(help="Its class, or a function that builds it, as `module:name`; it is imported and called.")
    ],
    context: Annotated[str | None, typer.Option(help="The program's input `context`, where it has one.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a trained program a question, and show each agent's step."""
    inputs = {"question": question} | ({} if context is None else {"context": context})
    with ending_cleanly():
        with stdout_kept_clean():
            recording = record(sirius_dspy.load(checkpoint, program=build_at(program), configure=True), inputs)
        if as_json:
            typer.echo(json.dumps(_plain_recording(recording)))
        else:
            _print_recording(recording)
        if recording.failure is not None:
            complain(f"The program failed: {recording.failure.kind}: {recording.failure.message}")
            raise typer.Exit(1)


def _run_demo(notes: Console, folder: Path, seed: int, tracker: MLflowTracker, *, quick: bool) -> DemoResult:
    programs = _demo_module()
    settings = programs.DemoSettings(**_QUICK) if quick else programs.DemoSettings()
    if RunDir(folder).results() is not None:
        notes.print(
            f"{folder} holds a finished run: its trained agents are reused and tested again. Pass another "
            "--run-dir, or delete the folder, to train anew.",
            soft_wrap=True,
        )
    result: DemoResult = programs.run(
        folder, seed=seed, tracker=Trackers([RichProgress(notes), tracker]), settings=settings
    )
    return result


def _demo_module() -> ModuleType:
    """`programs.demo`, which is in the repository and not in the wheel.

    Raises:
        MissingDependencyError: This is not the repository.
    """
    try:
        from programs import demo as module
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("programs", "metrics"):
            raise
        raise MissingDependencyError(
            f"The demo's program {error.name!r} is not part of the installed package. Clone the repository of "
            "sirius-dspy and run `make demo` there."
        ) from error
    return module


def _tables(result: DemoResult) -> Iterator[Table]:
    yield _accuracy_table(result)
    if any(entry["repair"]["tried"] for entry in result.results["iterations"][1:]):
        yield _repair_table(result.results["iterations"][1:])
    yield _seconds_table(result.seconds)


def _accuracy_table(result: DemoResult) -> Table:
    table = new_table(f"Test accuracy, seed {result.seed}", "program", "accuracy", "95 % interval", "items")
    table.add_row("majority baseline", percent(result.majority), "", str(result.test_items))
    for name, found in result.evaluations.items():
        low, high = found.interval()
        best = " (best on validation)" if name == f"iteration {result.best_iteration}" else ""
        interval = f"{percent(low)} to {percent(high)}"
        table.add_row(_label(name) + best, percent(found.score), interval, str(len(found.rewards)))
    return table


def _label(name: str) -> str:
    return {"demonstrated": "with demonstrations"}.get(name, name.replace("iteration", "after iteration"))


def _repair_table(iterations: Sequence[Mapping[str, Any]]) -> Table:
    verdicts = sorted({verdict for entry in iterations for verdict in entry["repair"]["verdicts"]} - {"repaired"})
    table = new_table(
        "Repair: failed runs, and the edits that did not help", "iteration", "tried", "repaired", *verdicts
    )
    for entry in iterations:
        repair = entry["repair"]
        counts = (repair["verdicts"].get(verdict, 0) for verdict in verdicts)
        table.add_row(*map(str, (entry["iteration"], repair["tried"], repair["repaired"], *counts)))
    return table


def _seconds_table(seconds: Mapping[str, float]) -> Table:
    table = new_table("Seconds", "stage", "seconds")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.1f}")
    return table


def _print_next_steps(console: Console, result: DemoResult, tracker: MLflowTracker) -> None:
    """Name the commands that go on from here, as they can be pasted into a shell."""
    from programs import needle_haystack

    example = needle_haystack.examples("test", 1, result.seed)[0]
    arguments = ["ask", str(result.checkpoint), "--program", "programs.needle_haystack:build"]
    arguments += ["--question", example.question, "--context", example.context]
    lines = [f"Ask the trained program (expected: {example.answer}):", _command("sirius-dspy", *arguments)]
    lines += ["Write a page about what it did:", _command("sirius-dspy", "report", str(result.checkpoint.parent))]
    if tracker.how_to_open and tracker.run_id:
        lines += [f"Open run {tracker.run_id} of experiment {tracker.experiment!r} in MLflow:", _opening(tracker)]
    console.print(Text("\n".join(lines)), soft_wrap=True)


def _opening(tracker: MLflowTracker) -> str:
    how = tracker.how_to_open or ""
    return _command(*shlex.split(how)) if how.startswith("mlflow ") else how


def _command(program: str, *arguments: str) -> str:
    """A line for the shell; a program of an environment that is not active gets its path."""
    own = Path(sys.executable).parent / program
    found = shutil.which(program)
    if own.exists() and (found is None or Path(found) != own):
        program = str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)
    return shlex.join([program, *arguments])


def _print_recording(recording: Recording) -> None:
    console = Console()
    for number, step in enumerate(recording.steps, start=1):
        outputs = step.outputs if step.outputs is not None else {"failed": step.failure and step.failure.message}
        shown = "; ".join(f"{name}: {value}" for name, value in readable(outputs).items())
        console.print(Text(f"{number}. {step.predictor} [{step.lm}] {shown}"), soft_wrap=True)
    if recording.failure is None:
        console.print(Text(f"answer: {_answer(recording)}"), soft_wrap=True)


def _plain_recording(recording: Recording) -> dict[str, Any]:
    return {
        "answer": _answer(recording),
        "prediction": readable(to_plain(recording.prediction)),
        "steps": [_plain_step(step) for step in recording.steps],
    }


def _plain_step(step: Step) -> dict[str, Any]:
    shown = ("predictor", "lm", "inputs", "outputs", "seconds")
    return {name: readable(getattr(step, name)) for name in shown}


def _answer(recording: Recording) -> Any:
    """The prediction's `answer`, or all of it where it has none."""
    prediction = readable(to_plain(recording.prediction))
    return prediction.get("answer", prediction) if isinstance(prediction, dict) else prediction
