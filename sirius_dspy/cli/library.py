"""`sirius-dspy library`: inspects, exports and verifies an experience library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from sirius_dspy.cli import library_tables
from sirius_dspy.cli.console import JsonFlag, exit_cleanly, wide_console
from sirius_dspy.errors import LibraryError
from sirius_dspy.files import write_text
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.queries import Filters
from sirius_dspy.optimizer.exporting import open_export
from sirius_dspy.optimizer.opening import open_library
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.trajectory import Repair, Trajectory

library = typer.Typer(name="library", help="Inspect, export and verify an experience library.", no_args_is_help=True)

FAILED = 2
"""Exit code of a failed command; 1 is a result of `verify`."""


class OriginChoice(StrEnum):
    """See `sirius_dspy.trajectory.Origin`."""

    rollout = "rollout"
    repair = "repair"
    validation = "validation"
    demonstration = "demonstration"
    credit = "credit"
    confirmation = "confirmation"
    imported = "imported"


class Format(StrEnum):
    """Formats of `export`."""

    parquet = "parquet"
    jsonl = "jsonl"
    openai = "openai"


class TRLTrainer(StrEnum):
    """Trainers of TRL that `export` writes for."""

    sft = "sft"
    dpo = "dpo"
    kto = "kto"
    sdpo = "sdpo"


Where = Annotated[
    str, typer.Argument(metavar="LIBRARY", help="The `run_dir` of a compile, a SQLite file, or a database URL.")
]
RunOption = Annotated[str | None, typer.Option(help="Id of a compile.")]
IterationOption = Annotated[
    int | None, typer.Option(help="Iteration of a compile, from 1; 0 is the untrained student.")
]
OriginOption = Annotated[list[OriginChoice] | None, typer.Option(help="Origin of runs; repeatable.")]
AgentOption = Annotated[str | None, typer.Option(help="Runs that called this agent, or predictor.")]
MinOption = Annotated[float | None, typer.Option(help="Minimum reward.")]
MaxOption = Annotated[float | None, typer.Option(help="Maximum reward.")]
FailedFlag = Annotated[bool, typer.Option("--failed", help="Only runs below the threshold.")]
ThresholdOption = Annotated[
    float | None, typer.Option(help="Minimum reward of a success; by default the compile's, otherwise 1.")
]


@dataclass(frozen=True)
class _Source:
    """A library, and what the run directory of its compile says about it."""

    library: ExperienceLibrary
    agents: Mapping[str, list[str]]
    """Agent name to its predictors; empty without a run directory."""
    threshold: float

    def filters(
        self,
        run: str | None,
        iteration: int | None,
        origin: list[OriginChoice] | None,
        agent: str | None,
        min_reward: float | None,
        max_reward: float | None,
        failed: bool,
    ) -> Filters:
        """Return the options as filters of the library."""
        return {
            "run": run,
            "iteration": iteration,
            "origin": [choice.value for choice in origin] if origin else None,
            "predictor": None if agent is None else self.agents.get(agent, [agent]),
            "min_reward": min_reward,
            "max_reward": max_reward,
            "below": self.threshold if failed else None,
        }


@contextmanager
def _open_library(where: str, threshold: float | None = None) -> Iterator[_Source]:
    """Open an existing library; an error ends the command.

    Args:
        where: Argument of the user.
        threshold: Option of the user, which overrides the compile's threshold.
    """
    with exit_cleanly(failed=FAILED):
        source = find_source(where, threshold)
        with source.library:
            yield source


def find_source(where: str, threshold: float | None) -> _Source:
    """Find an existing library; see `_open_library`."""
    is_folder = "://" not in where and Path(where).is_dir()
    identity = (RunDir(Path(where)).shown_identity() or {}) if is_folder else {}
    value = identity.get("settings", {}).get("threshold", 1.0) if threshold is None else threshold
    return _Source(open_library(where), identity.get("agents", {}), float(value))


@library.command("ls")
def list_runs(
    where: Where,
    run: RunOption = None,
    iteration: IterationOption = None,
    origin: OriginOption = None,
    agent: AgentOption = None,
    min_reward: MinOption = None,
    max_reward: MaxOption = None,
    failed: FailedFlag = False,
    threshold: ThresholdOption = None,
    limit: Annotated[int, typer.Option(help="Maximum number of runs to show.", min=1)] = 50,
    offset: Annotated[int, typer.Option(help="Number of runs to skip.", min=0)] = 0,
    as_json: JsonFlag = False,
) -> None:
    """List trajectories in the order in which they were added."""
    with _open_library(where, threshold) as source:
        filters = source.filters(run, iteration, origin, agent, min_reward, max_reward, failed)
        entries = list(source.library.entries(limit=limit, offset=offset, **filters))
        total = source.library.count(**filters)
        if as_json:
            _echo({"total": total, "offset": offset, "trajectories": [asdict(entry) for entry in entries]})
            return
        console = wide_console()
        console.print(library_tables.entries_table(entries, source.threshold))
        console.print(Text(library_tables.position(len(entries), offset, total)))


@library.command()
def show(
    where: Where,
    id: Annotated[str, typer.Argument(metavar="ID", help="Id of a trajectory, or a unique prefix of it.")],
    as_json: JsonFlag = False,
) -> None:
    """Show one trajectory: its steps, its origin, and the attempts to repair it."""
    with _open_library(where) as source:
        opened = source.library
        trajectory = opened.find(id)
        repairs = list(opened.repairs(parent=trajectory.id))
        children = [entry.id for entry in opened.entries(parent=trajectory.id)]
        made_by = _find_repair(opened, trajectory)
        if as_json:
            _echo(
                {
                    "id": trajectory.id,
                    **trajectory.to_dict(),
                    "repairs": [repair.to_dict() for repair in repairs],
                    "children": children,
                    "made_by": made_by and made_by.to_dict(),
                }
            )
            return
        console = Console()
        for line in library_tables.describe(trajectory, repairs, children, made_by):
            console.print(line, soft_wrap=True)


@library.command()
def stats(
    where: Where,
    threshold: ThresholdOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Count trajectories by run, iteration and origin, and steps by agent."""
    with _open_library(where, threshold) as source:
        groups = source.library.stats(threshold=source.threshold)
        repairs = library_tables.RepairStats.of(source.library.repairs())
        num_bytes = source.library.num_bytes()
        if as_json:
            _echo(library_tables.plain_stats(groups, repairs, num_bytes, source.threshold, source.agents))
            return
        console = wide_console()
        console.print(library_tables.groups_table(groups, source.threshold))
        console.print(library_tables.agents_table(groups, source.agents))
        console.print(Text(library_tables.size(groups, repairs, num_bytes)))


@library.command()
def export(
    where: Where,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    format: Annotated[
        Format,
        typer.Option(
            help="parquet: a row per step; jsonl: a trajectory per line; openai: the rows that an agent of a compile "
            "was trained on, as chats."
        ),
    ] = Format.parquet,
    to: Annotated[
        TRLTrainer | None,
        typer.Option(
            help="Steps of a compile for a trainer of TRL, as .jsonl or .parquet by the ending of --out. sft: steps of "
            "successful runs; dpo: pairs of a repaired and a failed step; kto: good and bad steps; sdpo: failed steps "
            "with the feedback that led to a repair."
        ),
    ] = None,
    run: RunOption = None,
    iteration: IterationOption = None,
    origin: OriginOption = None,
    agent: AgentOption = None,
    min_reward: MinOption = None,
    max_reward: MaxOption = None,
    failed: FailedFlag = False,
    threshold: ThresholdOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write trajectories, an agent's training rows, or data sets for TRL, into one file."""
    if to is not None:
        given = {"format": format is not Format.parquet, "run": run, "origin": origin, "failed": failed}
        given |= {"min-reward": min_reward is not None, "max-reward": max_reward is not None}
        with exit_cleanly(failed=FAILED):
            _refuse_with_to([name for name, value in given.items() if value])
            _export_to(to, where, out, iteration=iteration, agent=agent, threshold=threshold, as_json=as_json)
        return
    with _open_library(where, threshold) as source:
        filters = source.filters(run, iteration, origin, agent, min_reward, max_reward, failed)
        if format is Format.openai:
            others = [name for name, value in filters.items() if name not in ("iteration", "predictor") and value]
            _refuse_filters(others)
            num_rows = _copy_training_rows(RunDir(Path(where)), source.agents, agent, iteration, out)
        elif format is Format.jsonl:
            num_rows = source.library.to_jsonl(out, **filters)
        else:
            num_rows = source.library.to_parquet(out, **filters)
        if as_json:
            _echo({"path": str(out), "rows": num_rows})
        else:
            Console().print(Text(f"{out}: {num_rows:,} rows"), soft_wrap=True)


@library.command()
def verify(where: Where, as_json: JsonFlag = False) -> None:
    """Recompute every content hash, and check all references. The exit code is 1 if there is a problem.

    For a `run_dir`, the training rows are also checked: each prompt must be the one that was sent in its run.
    """
    with _open_library(where) as source:
        opened = source.library
        problems = opened.verify()
        if Path(where).is_dir():
            problems += [
                problem for path in RunDir(Path(where)).training_files() for problem in opened.verify_rows(path)
            ]
        if as_json:
            _echo({"trajectories": opened.count() if not problems else None, "problems": problems})
        else:
            console = Console()
            for problem in problems:
                console.print(Text(problem), soft_wrap=True)
            if not problems:
                console.print(Text(f"All is well: {opened.count():,} trajectories."))
        if problems:
            raise typer.Exit(1)


def _find_repair(opened: ExperienceLibrary, trajectory: Trajectory) -> Repair | None:
    """Return the repair that produced a trajectory."""
    if trajectory.parent is None:
        return None
    for repair in opened.repairs(parent=trajectory.parent):
        if any(attempt.trajectory == trajectory.id for attempt in repair.attempts):
            return repair
    return None


def _refuse_filters(names: list[str]) -> None:
    if names:
        raise LibraryError(
            f"Training rows were chosen by the compile, so the format 'openai' takes no {', '.join(names)}. Pass "
            "`--agent` and `--iteration` only, or export as 'jsonl'."
        )


def _refuse_with_to(names: list[str]) -> None:
    if names:
        options = ", ".join(f"`--{name}`" for name in names)
        raise LibraryError(
            f"`--to` chooses the steps itself and takes no {options}. Pass `--agent`, `--iteration` and `--threshold` "
            "only, or export without `--to`."
        )


def _export_to(
    to: TRLTrainer,
    where: str,
    out: Path,
    *,
    iteration: int | None,
    agent: str | None,
    threshold: float | None,
    as_json: bool,
) -> None:
    """Write a data set for a trainer of TRL.

    Raises:
        LibraryError: The folder is not a run directory, or the agent is not one that it trained.
    """
    export = open_export(where, iteration=iteration, threshold=threshold)
    with export.library:
        if agent is not None and agent not in export.agents:
            raise LibraryError(f"The compile trained no agent {agent!r}, only {list(export.agents)}.")
        chosen = export if agent is None else replace(export, agents={agent: export.agents[agent]})
        writers = {"sft": chosen.to_sft, "dpo": chosen.to_dpo, "kto": chosen.to_kto, "sdpo": chosen.to_sdpo}
        exported = writers[to](out)
    if as_json:
        rows = {"rows": exported.num_rows, "agents": exported.rows, "left_out": exported.left_out}
        _echo({"path": str(out), **rows})
    else:
        Console().print(Text(library_tables.describe_export(exported)), soft_wrap=True)


def _copy_training_rows(
    run_dir: RunDir, agents: Mapping[str, list[str]], agent: str | None, iteration: int | None, out: Path
) -> int:
    """Write the rows on which an agent was fine-tuned, by default in the last iteration with rows.

    Raises:
        LibraryError: The folder is not a run directory, the agent is unknown or not named, or there are no rows yet.
    """
    if not agents:
        raise LibraryError(
            f"{str(run_dir.path)!r} is not the folder of a compile, which the format 'openai' needs: the program "
            "writes the prompts, and a library has none. Pass the `run_dir`, or export as 'jsonl'."
        )
    if agent is None and len(agents) == 1:
        agent = next(iter(agents))
    if agent is None or agent not in agents:
        raise LibraryError(f"The agent {agent!r} is not one of the compile. Pass `--agent` with one of {list(agents)}.")
    numbers = range(_num_iterations(run_dir), 0, -1) if iteration is None else [iteration]
    for number in numbers:
        if (rows := run_dir.training_rows(number, agent)) is not None:
            write_text(out, "".join(f"{row}\n" for row in rows))
            return len(rows)
    wanted = "any iteration" if iteration is None else f"iteration {iteration}"
    raise LibraryError(f"The agent {agent!r} has no training rows of {wanted} in {str(run_dir.path)!r}.")


def _num_iterations(run_dir: RunDir) -> int:
    return len(list((run_dir.path / "training").glob("iteration-*")))


def _echo(record: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(record))
