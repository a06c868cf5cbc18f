"""The command line: `demo` shows the loop on this machine, `ask` asks its outcome, `experiment` compares methods.

Results go to stdout, everything else to stderr, so that `--json` can be piped. What is wrong is one message and exit
code 1, an interrupt is exit code 130; a traceback means a bug.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import sirius_dspy
from sirius_dspy.errors import MissingDependencyError, SiriuSError
from sirius_dspy.mlflow import MLflowTracker
from sirius_dspy.progress import RichProgress
from sirius_dspy.record import Recording, record
from sirius_dspy.run_dir import RunDir, slug
from sirius_dspy.track import Trackers
from sirius_dspy.trajectory import Step, to_plain

if TYPE_CHECKING:
    from programs.demo import DemoResult
    from sirius_dspy.experiment import Experiment, Results

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

QUICK = {"train_items": 16, "validation_items": 8, "test_items": 10, "iterations": 1, "samples": 2}
"""Sizes that go through every stage in about a minute; too small to learn much."""

_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_WIDE = 160
"""Columns of a wide table in a file or a pipe, which have no width of their own."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sirius-dspy {sirius_dspy.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Self-improving multi-agent DSPy programs."""


@app.command()
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
    with _ending_cleanly(f"Run the same command again to go on from {str(folder)!r}."):
        tracker = MLflowTracker()
        with _stdout_kept_clean():
            result = _run_demo(notes, folder, seed, tracker, quick=quick)
        shown = notes if as_json else Console()
        for table in _tables(result):
            shown.print(table)
        _print_next_steps(shown, result, tracker)
        if as_json:
            typer.echo(json.dumps(result.to_dict()))


@app.command()
def ask(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that `sirius_dspy.save` or the demo wrote.")],
    question: Annotated[str, typer.Option(help="The program's input `question`.")],
    context: Annotated[str | None, typer.Option(help="The program's input `context`, where it has one.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask a trained program a question, and show each agent's step."""
    inputs = {"question": question} | ({} if context is None else {"context": context})
    with _ending_cleanly():
        with _stdout_kept_clean():
            recording = record(sirius_dspy.load(checkpoint), inputs)
        if as_json:
            typer.echo(json.dumps(_plain_recording(recording)))
        else:
            _print_recording(recording)
        if recording.failure is not None:
            _complain(f"The program failed: {recording.failure.kind}: {recording.failure.message}")
            raise typer.Exit(1)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="A recipe in `recipes/`, or the path of a TOML file.")],
    lm: Annotated[
        str | None,
        typer.Option(help="local/NAME, a .gguf file, provider/model, or module:name; by default the recipe's."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names with commas between them; by default the recipe's.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="E.g. 0,1,2; by default the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Examples of each split at most, to try things out.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="PATH of a local data file, or NAME=PATH where the recipe takes several; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where everything is kept; by default `runs/experiment-NAME-LM`.")
    ] = None,
    mlflow: Annotated[bool, typer.Option(help="Write a run per method and seed to MLflow.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Compare methods on one task: same data, same LM, equal budgets.

    The same command goes on from an interrupted run; more methods and seeds can be added. The exit code is 1 if some
    cell failed, after all others are done.
    """
    notes = Console(stderr=True)
    with _ending_cleanly("Run the same command again to go on."):
        with _stdout_kept_clean():
            results, folder = _run_experiment(notes, name, lm, methods, seeds, limit, data or [], out, mlflow=mlflow)
        shown = notes if as_json else Console(width=None if sys.stdout.isatty() else _WIDE)
        shown.print(_experiment_table(results))
        shown.print(Text(f"All of it: {folder / 'results.md'}"), soft_wrap=True)
        if as_json:
            typer.echo(json.dumps(results.to_dict()))
        for cell in results.failed:
            _complain(f"{cell.method}, seed {cell.seed}, failed: {cell.error}")
        if results.failed:
            raise typer.Exit(1)


def _run_experiment(
    notes: Console,
    name: str,
    lm: str | None,
    methods: str | None,
    seeds: str | None,
    limit: int | None,
    data: Sequence[str],
    out: Path | None,
    *,
    mlflow: bool,
) -> tuple[Results, Path]:
    from sirius_dspy.experiment import Experiment, MLflowRuns
    from sirius_dspy.experiment.notes import Notes

    found = Experiment.from_file(name)
    folder = out or _experiment_folder(found, lm, limit)
    results = found.run(
        folder,
        lm=lm,
        methods=None if methods is None else _listed(methods),
        seeds=None if seeds is None else _numbers(seeds),
        limit=limit,
        files=_data_files(data, found.recipe.task.data),
        observers=[Notes(notes), *([MLflowRuns()] if mlflow else [])],
        tracker=RichProgress(notes),
        command=shlex.join(["sirius-dspy", *sys.argv[1:]]),
    )
    return results, folder


def _experiment_folder(found: Experiment, lm: str | None, limit: int | None) -> Path:
    model = slug((lm or str(found.recipe.lm.get("model", ""))).rpartition("/")[2])
    return Path("runs") / "-".join(["experiment", found.name, model, *([f"limit-{limit}"] if limit else [])])


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _listed(text)]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}, expected whole numbers with commas between them.") from error


def _data_files(given: Sequence[str], arguments: Sequence[str]) -> dict[str, Path]:
    """Argument of the task's `examples` to file; a bare path is for the first one."""
    found = {}
    for text in given:
        name, equals, path = text.partition("=")
        named = bool(equals) and name in arguments
        if not named and not arguments:
            raise typer.BadParameter(f"The task of this recipe takes no data file, got {text!r}.")
        found[name if named else arguments[0]] = Path(path if named else text)
    return found


def _run_demo(notes: Console, folder: Path, seed: int, tracker: MLflowTracker, *, quick: bool) -> DemoResult:
    programs = _demo_module()
    settings = programs.DemoSettings(**QUICK) if quick else programs.DemoSettings()
    if RunDir(folder).finished("results") is not None:
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


# How a command ends


@contextlib.contextmanager
def _ending_cleanly(how_to_resume: str = "") -> Iterator[None]:
    """Turn what was raised on purpose into a message and an exit code."""
    _quiet_libraries()
    if os.getcwd() not in sys.path:  # a program's own module lies where the user works; installed ones come first
        sys.path.append(os.getcwd())
    try:
        yield
    except (SiriuSError, OSError) as error:
        _complain(str(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        _complain(f"Interrupted. {how_to_resume}".strip())
        raise typer.Exit(130) from interrupt


def _complain(message: str) -> None:
    Console(stderr=True).print(Text(f"sirius-dspy: {message}"), soft_wrap=True)


def _stdout_kept_clean() -> contextlib.AbstractContextManager[Any]:
    """What libraries print goes to stderr."""
    return contextlib.redirect_stdout(sys.stderr)


def _quiet_libraries() -> None:
    """Silence what is normal here: replies cut at `max_tokens`, new MLflow tables, loading bars."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("dspy", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


# What a command shows


def _tables(result: DemoResult) -> Iterator[Table]:
    yield _accuracy_table(result)
    if any(entry["repair"]["tried"] for entry in result.results["iterations"][1:]):
        yield _repair_table(result.results["iterations"][1:])
    yield _seconds_table(result.seconds)


def _accuracy_table(result: DemoResult) -> Table:
    table = _table(f"Test accuracy, seed {result.seed}", "program", "accuracy", "95 % interval", "items")
    table.add_row("majority baseline", _percent(result.majority), "", str(result.test_items))
    for name, found in result.evaluations.items():
        low, high = found.interval()
        best = " (best on validation)" if name == f"iteration {result.best_iteration}" else ""
        interval = f"{_percent(low)} to {_percent(high)}"
        table.add_row(_label(name) + best, _percent(found.score), interval, str(len(found.rewards)))
    return table


def _experiment_table(results: Results) -> Table:
    from sirius_dspy.experiment.render import summary_table

    header, rows = summary_table(results)
    against = f"differences in points from {results.recipe.baseline!r}; calls and seconds before the test, per seed"
    table = _table(escape(f"{results.recipe.title or results.name} ({against})"), *map(escape, header))
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _label(name: str) -> str:
    return {"demonstrated": "with demonstrations"}.get(name, name.replace("iteration", "after iteration"))


def _repair_table(iterations: Sequence[Mapping[str, Any]]) -> Table:
    verdicts = sorted({verdict for entry in iterations for verdict in entry["repair"]["verdicts"]} - {"repaired"})
    table = _table("Repair: failed runs, and the edits that did not help", "iteration", "tried", "repaired", *verdicts)
    for entry in iterations:
        repair = entry["repair"]
        counts = (repair["verdicts"].get(verdict, 0) for verdict in verdicts)
        table.add_row(*map(str, (entry["iteration"], repair["tried"], repair["repaired"], *counts)))
    return table


def _seconds_table(seconds: Mapping[str, float]) -> Table:
    table = _table("Seconds", "stage", "seconds")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.1f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _print_next_steps(console: Console, result: DemoResult, tracker: MLflowTracker) -> None:
    """Name the commands that go on from here, as they can be pasted into a shell."""
    from programs import needle_haystack

    example = needle_haystack.examples("test", 1, result.seed)[0]
    arguments = ["ask", str(result.checkpoint), "--question", example.question, "--context", example.context]
    lines = [f"Ask the trained program (expected: {example.answer}):", _command("sirius-dspy", *arguments)]
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
        shown = "; ".join(f"{name}: {value}" for name, value in outputs.items())
        console.print(Text(f"{number}. {step.predictor} [{step.lm}] {shown}"), soft_wrap=True)
    if recording.failure is None:
        console.print(Text(f"answer: {_answer(recording)}"), soft_wrap=True)


def _plain_recording(recording: Recording) -> dict[str, Any]:
    return {
        "answer": _answer(recording),
        "prediction": to_plain(recording.prediction),
        "steps": [_plain_step(step) for step in recording.steps],
    }


def _plain_step(step: Step) -> dict[str, Any]:
    shown = ("predictor", "lm", "inputs", "outputs", "seconds")
    return {name: to_plain(getattr(step, name)) for name in shown}


def _answer(recording: Recording) -> Any:
    """The prediction's `answer`, or all of it where it has none."""
    prediction = to_plain(recording.prediction)
    return prediction.get("answer", prediction) if isinstance(prediction, dict) else prediction
