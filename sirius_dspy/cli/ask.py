"""`sirius-dspy ask`: asks a trained program a question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import sirius_dspy
from sirius_dspy.checkpoint.naming import build_at
from sirius_dspy.cli.console import JsonFlag, complain, exit_cleanly, stdout_kept_clean
from sirius_dspy.cli.inputs import check_inputs, read_declared_inputs, read_inputs
from sirius_dspy.plain import readable
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Recording
from sirius_dspy.trajectory import Step, to_plain


def ask(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that `compile`, `demo` or `sirius_dspy.save` wrote.")],
    program: Annotated[
        str,
        typer.Option(
            help="The program's class, or a function that builds it, as `module:name` or `file.py:name`. It is "
            "imported and called."
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME=VALUE for each input of the program; by default, JSON is read from stdin."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a trained program, and show each agent's step.

    Values of inputs with a declared type such as a number or a list are read as JSON, all others as text.
    """
    with exit_cleanly():
        with stdout_kept_clean():
            declared = read_declared_inputs(checkpoint)
            values = read_inputs(inputs or [], declared)
            loaded = sirius_dspy.load(checkpoint, program=build_at(program), configure=True)
            check_inputs(values, declared, loaded)
            recording = record(loaded, values)
        if as_json:
            typer.echo(json.dumps(_plain_recording(recording)))
        else:
            _print_recording(recording)
        if recording.failure is not None:
            complain(f"The program failed: {recording.failure.kind}: {recording.failure.message}")
            raise typer.Exit(1)


def _print_recording(recording: Recording) -> None:
    console = Console()
    for number, step in enumerate(recording.steps, start=1):
        outputs = step.outputs if step.outputs is not None else {"failed": step.failure and step.failure.message}
        values = "; ".join(f"{name}: {value}" for name, value in readable(outputs).items())
        console.print(Text(f"{number}. {step.predictor} [{step.lm}] {values}"), soft_wrap=True)
    if recording.failure is None:
        console.print(Text(f"answer: {_answer(recording)}"), soft_wrap=True)


def _plain_recording(recording: Recording) -> dict[str, Any]:
    return {
        "answer": _answer(recording),
        "prediction": readable(to_plain(recording.prediction)),
        "steps": [_plain_step(step) for step in recording.steps],
    }


def _plain_step(step: Step) -> dict[str, Any]:
    names = ("predictor", "lm", "inputs", "outputs", "seconds")
    return {name: readable(getattr(step, name)) for name in names}


def _answer(recording: Recording) -> Any:
    """Return the prediction's `answer`, or the whole prediction if it has none."""
    prediction = readable(to_plain(recording.prediction))
    return prediction.get("answer", prediction) if isinstance(prediction, dict) else prediction
