"""`sirius-dspy compile`: fine-tunes the agents of a program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import sirius_dspy
from sirius_dspy.cli import options
from sirius_dspy.cli.console import JsonFlag, exit_cleanly, new_table, percent, stdout_kept_clean
from sirius_dspy.cli.examples import read_examples
from sirius_dspy.cli.programs import build_program, import_setting, make_adapter, set_lms
from sirius_dspy.cli.settings import agents_of, budget_of, groups_in, names_in, values_in
from sirius_dspy.cli.shell import command, next_steps
from sirius_dspy.errors import LibraryError
from sirius_dspy.executors import ProcessExecutor
from sirius_dspy.experiment.lms import lm_from
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.mlflow import MLflowTracker
from sirius_dspy.optimizer.gate import ValsetGate
from sirius_dspy.optimizer.results import CompileResult, IterationResult
from sirius_dspy.optimizer.settings import Collect
from sirius_dspy.optimizer.sirius import SiriuS
from sirius_dspy.repair.critic import CriticAugmenter
from sirius_dspy.running.patience import Patience
from sirius_dspy.tracking.events import Trackers
from sirius_dspy.tracking.progress import RichProgress
from sirius_dspy.training.curate import Curator
from sirius_dspy.training.hosted import HostedTrainer
from sirius_dspy.training.suitable import SuitableTrainer
from sirius_dspy.training.trainers import ProviderTrainer, Trainer, TrainFrom


@dataclass(frozen=True)
class Job:
    """A compile, as described by the command line."""

    path: str
    """The program's name on the command line."""
    student: dspy.Module
    trainset: list[dspy.Example]
    valset: list[dspy.Example] | None
    optimizer: SiriuS
    run_dir: Path
    checkpoint: Path
    tracker: MLflowTracker | None

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `compile` and `plan`."""
        return {"student": self.student, "trainset": self.trainset, "valset": self.valset}


def compile_program(
    program: options.ProgramArgument,
    metric: options.MetricOption,
    train: options.TrainOption,
    inputs: options.InputsOption,
    val: options.ValOption = None,
    lm: options.LMOption = None,
    lm_settings: options.LMSettingOption = None,
    adapter: options.AdapterOption = None,
    groups: options.GroupOption = None,
    shared_weights: options.SharedWeightsFlag = False,
    frozen: options.FrozenOption = None,
    iterations: options.IterationsOption = 2,
    threshold: options.ThresholdOption = 1.0,
    samples: options.SamplesOption = Collect.samples,
    temperature: options.TemperatureOption = Collect.temperature,
    until_solved: options.UntilSolvedFlag = False,
    demos: options.DemosOption = None,
    repair: options.RepairOption = True,
    critic: options.CriticOption = None,
    max_repairs: options.MaxRepairsOption = None,
    gate: options.GateOption = True,
    min_gain: options.MinGainOption = ValsetGate.min_gain,
    cumulative: options.CumulativeFlag = False,
    max_rows: options.MaxRowsOption = None,
    max_per_example: options.MaxPerExampleOption = Curator.max_per_example,
    train_from: options.TrainFromOption = "base",
    train_settings: options.TrainSettingOption = None,
    train_price: options.TrainPriceOption = None,
    budget_calls: options.BudgetCallsOption = None,
    budget_tokens: options.BudgetTokensOption = None,
    budget_usd: options.BudgetUSDOption = None,
    budget_seconds: options.BudgetSecondsOption = None,
    retries: options.RetriesOption = Patience.retries,
    call_timeout: options.CallTimeoutOption = 600.0,
    run_timeout: options.RunTimeoutOption = 3600.0,
    max_unfinished: options.MaxUnfinishedOption = Patience.max_unfinished,
    num_threads: options.NumThreadsOption = None,
    processes: options.ProcessesOption = 1,
    run_dir: options.RunDirOption = None,
    checkpoint: options.CheckpointOption = None,
    library: options.LibraryOption = None,
    accept_changes: options.AcceptChangesOption = None,
    seed: options.SeedOption = 0,
    mlflow: options.MLflowOption = True,
    dry_run: options.DryRunFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune the agents of a program on its own successful runs, and save the result.

    The same command resumes an interrupted run and reuses a finished one.
    """
    folder = run_dir or _default_folder(program, seed)
    notes = Console(stderr=True)
    with exit_cleanly(f"Run the same command again to resume from {str(folder)!r}."):
        with stdout_kept_clean():
            settings, members = values_in(lm_settings, "--lm-setting"), groups_in(groups)
            student = build_program(program)
            set_lms(student, lm or [], members, settings)
            tracker = MLflowTracker() if mlflow and not dry_run else None
            optimizer = SiriuS(
                import_setting(metric, "--metric"),
                threshold=threshold,
                iterations=iterations,
                collect=Collect(samples, temperature, until_solved, _demos(demos)),
                augmenter=_augmenter(critic, settings, max_repairs) if repair else None,
                curator=Curator(max_per_example, max_rows, cumulative),
                trainer=_trainer(values_in(train_settings, "--train-setting"), train_from, train_price),
                gate=ValsetGate(min_gain) if gate else None,
                agents=agents_of(members, shared=shared_weights),
                frozen=names_in(frozen),
                budget=budget_of(calls=budget_calls, tokens=budget_tokens, usd=budget_usd, seconds=budget_seconds),
                patience=Patience(retries, call_timeout, run_timeout, max_unfinished),
                tracker=Trackers([RichProgress(notes), *([tracker] if tracker else [])]),
                library=_library(library, dry_run=dry_run),
                run_dir=folder,
                accept_changes=names_in(accept_changes),
                num_threads=num_threads,
                executor=ProcessExecutor(processes) if processes != 1 else None,
                seed=seed,
            )
            job = Job(
                program,
                student,
                read_examples(train, names_in(inputs), "train"),
                None if val is None else read_examples(val, names_in(inputs), "validation"),
                optimizer,
                folder,
                checkpoint or folder / "checkpoint",
                tracker,
            )
        with dspy.context(adapter=make_adapter(adapter, student)):
            (_print_plan if dry_run else _run)(job, notes, as_json=as_json)


def _trainer(settings: dict[str, Any], train_from: TrainFrom, price: float | None) -> Trainer:
    """Return what fits each LM; settings of a provider are for `lm.finetune`, or for jobs that have a price."""
    prices = None if price is None else {"openai/": price}
    if not settings:
        return SuitableTrainer(train_from=train_from, prices=prices)
    if prices is None:
        return ProviderTrainer(settings, train_from=train_from)
    return HostedTrainer(settings, train_from=train_from, prices=prices)


def _print_plan(job: Job, notes: Console, *, as_json: bool) -> None:
    with stdout_kept_clean():
        plan = job.optimizer.plan(**job.arguments)
        plain = plan.to_dict() if as_json else None
    if as_json:
        typer.echo(json.dumps(plain))
    else:
        typer.echo(str(plan), nl=False)


def _run(job: Job, notes: Console, *, as_json: bool) -> None:
    with stdout_kept_clean():
        compiled = job.optimizer.compile(**job.arguments)
        sirius_dspy.save(compiled, job.checkpoint)
    result: CompileResult = compiled.detailed_results
    out = notes if as_json else Console()
    out.print(_table(result))
    if any(entry.credits for entry in result.iterations):
        out.print(_credit_table(result))
    if result.reason:
        out.print(Text(f"Ended early: {result.reason}."), soft_wrap=True)
    out.print(Text("\n".join(next_steps(_ask(job), job.run_dir, job.tracker))), soft_wrap=True)
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(job.checkpoint), "results": result.to_dict()}))


def _default_folder(program: str, seed: int) -> Path:
    """Name the folder after the file or module and the program, so that the same command finds it again."""
    place, _, name = program.rpartition(":")
    where = Path(place).stem if place.endswith(".py") else place.replace(".", "_")
    return Path("runs") / f"compile-{where}-{name}-seed-{seed}"


def _demos(path: str | None) -> Any:
    if path is None:
        return None
    demos = import_setting(path, "--demos")
    return demos() if callable(demos) else demos


def _augmenter(critic: str | None, settings: Mapping[str, Any], max_repairs: int | None) -> CriticAugmenter:
    return CriticAugmenter(None if critic is None else lm_from(critic, settings, {}), max_repairs=max_repairs)


def _library(url: str | None, *, dry_run: bool) -> ExperienceLibrary | None:
    """Open the library; a plan only reads an existing one."""
    if url is None:
        return None
    if not dry_run:
        return ExperienceLibrary(url)
    try:
        return ExperienceLibrary.existing(url)
    except LibraryError:
        return None


def _table(result: CompileResult) -> Table:
    table = new_table(f"Score on validation, {result.seconds:.0f} s", "program", "score", "95 % interval", "kept")
    for entry in result.iterations:
        best = " (best)" if entry.iteration == result.best_iteration else ""
        name = f"after iteration {entry.iteration}" if entry.iteration else "as given"
        table.add_row(name + best, f"{entry.score:.3f}", _interval(entry), _kept(entry))
    return table


def _credit_table(result: CompileResult) -> Table:
    table = new_table("Credit by replay", "iteration", "agent", "steps", "mean credit", "helped", "harmed")
    for entry in result.iterations:
        for name, found in entry.credits.items():
            counts = (str(found.helped), str(found.harmed))
            table.add_row(str(entry.iteration), name, str(found.steps), f"{found.mean:+.2f}", *counts)
    return table


def _interval(entry: IterationResult) -> str:
    return "" if entry.interval is None else " to ".join(map(percent, entry.interval))


def _kept(entry: IterationResult) -> str:
    kept: Sequence[str] = [agent for agent, is_kept in entry.promoted.items() if is_kept]
    return ", ".join(kept) if kept else "none" if entry.promoted else ""


def _ask(job: Job) -> str:
    """Return the command that asks the trained program the question of the first example."""
    arguments = ["ask", str(job.checkpoint), "--program", job.path]
    for name, value in (job.valset or job.trainset)[0].inputs().items():
        arguments += ["--input", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return f"Ask the trained program:\n{command('sirius-dspy', *arguments)}"
