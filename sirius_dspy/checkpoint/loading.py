"""Loads checkpoints. Everything is checked before anything is built, and nothing is imported that a file names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.checkpoint.download import SCHEME, fetch_checkpoint
from sirius_dspy.checkpoint.folder import check_files
from sirius_dspy.checkpoint.manifest import MANIFEST, AdapterState, AgentEntry, LMState, Manifest, read_manifest
from sirius_dspy.checkpoint.naming import Build
from sirius_dspy.checkpoint.parts import build_adapter, build_lm, check_lm, describe_adapter, is_known, store_adapter
from sirius_dspy.checkpoint.program import ProgramState, read_program, restore_on_error, restore_program
from sirius_dspy.dspy_internals import mark_compiled
from sirius_dspy.errors import CheckpointError
from sirius_dspy.program import program_fingerprint, set_lms

_ATTEMPTS = 3
"""Number of attempts to read a checkpoint that is replaced at the same time."""


def load(
    folder: str | Path,
    *,
    program: dspy.Module | Build | None = None,
    lms: Mapping[str, dspy.LM] | None = None,
    configure: bool = False,
) -> dspy.Module:
    """Load a checkpoint, in any process and on any machine.

    A checkpoint is data: loading runs no code from it and contacts no server, whoever wrote it.

    Args:
        folder: The folder that `save` wrote, or the address of a model that `sirius_dspy.mlflow.register` registered:
            `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in MLflow's current registry.
        program: The program's class, a function that builds it, or a new instance; code is never loaded from a file.
        lms: Agent or predictor name to the LM that replaces the saved one. Required for LMs of your own classes, and
            for LMs with an endpoint, headers or the like, which are never loaded from a file.
        configure: Whether to make the checkpoint's adapter DSPy's default (`dspy.configure(adapter=...)`) if another
            one is active. DSPy has one adapter for all programs, and agents answer badly with an adapter that they
            were not trained with, so by default a different adapter is an error.

    Raises:
        CheckpointError: A file is missing, changed, or not written by `save`; the program does not fit; or an LM or the
            adapter must be passed. The program that was passed is left unchanged.
    """
    path = _local(folder)
    manifest, state = _check_and_read(path)
    if manifest.state is None or state is None:
        raise CheckpointError(
            f"{str(folder)!r} holds only the agent {next(iter(manifest.agents))!r}. Call `load_agent` of "
            "`sirius_dspy.mlflow` for its LM, or load the program."
        )
    adapter = _adapter(manifest.adapter, configure)
    _check_predictors(path, manifest, state)
    _check_lms(manifest, lms or {})
    loaded = _program(program, manifest)
    with restore_on_error(loaded):
        restore_program(loaded, state)
        if program_fingerprint(loaded) != manifest.fingerprint:
            raise CheckpointError(
                f"The signatures of {type(loaded).__name__} are not those of the program in {str(path)!r}, which the "
                "agents were trained for. Pass the program that was saved."
            )
        set_lms(loaded, _build_lms(path, manifest, lms or {}))
    if adapter is not None:
        dspy.configure(adapter=adapter)
    mark_compiled(loaded)
    if manifest.results is not None:
        vars(loaded)["detailed_results"] = manifest.results
    return loaded


def load_agent(folder: str | Path, agent: str | None = None) -> dspy.LM:
    """Load the LM of one agent, to use it in another program or to restore an older version.

    Args:
        folder: A checkpoint of a program or of an agent, or its address in MLflow's registry, as for `load`.
        agent: Name of the agent; required if the checkpoint holds several.

    Raises:
        CheckpointError: As for `load`, or the agent does not exist.
    """
    path = _local(folder)
    agents = verify(path).agents
    name = next(iter(agents)) if agent is None and len(agents) == 1 else agent
    if name is None or name not in agents:
        raise CheckpointError(f"{str(folder)!r} has the agents {list(agents)}, not {name!r}. Name one of them.")
    _check_lm(name, agents[name], agents[name].lm)
    return _build(path, agents[name], agents[name].lm)


def adapter_of(folder: str | Path) -> Adapter:
    """Return the adapter that a checkpoint's agents were trained with.

    Raises:
        CheckpointError: It cannot be built from a file.
    """
    return build_adapter(read_manifest(_local(folder)).adapter)


def verify(folder: str | Path) -> Manifest:
    """Check every file of a checkpoint against its manifest, and return the manifest.

    Raises:
        CheckpointError: A file is missing, changed, or not written by `save`.
    """
    return _check_and_read(_local(folder))[0]


def _local(folder: str | Path) -> Path:
    if not isinstance(folder, str | Path):
        raise CheckpointError(f"{folder!r} is not a checkpoint. Pass the folder that `sirius_dspy.save` wrote.")
    return fetch_checkpoint(folder) if isinstance(folder, str) and folder.startswith(SCHEME) else Path(folder)


def _check_and_read(path: Path) -> tuple[Manifest, ProgramState | None]:
    for attempt in range(1, _ATTEMPTS + 1):
        before = _version(path)
        try:
            manifest = read_manifest(path)
            check_files(path, manifest)
            return manifest, None if manifest.state is None else read_program(path / manifest.state)
        except (CheckpointError, OSError) as error:
            if attempt < _ATTEMPTS and before is not None and _version(path) != before:
                continue  # it was replaced in the meantime
            if isinstance(error, CheckpointError):
                raise
            raise _unreadable(path, error) from error
        except ValueError as error:  # a path with a NUL
            raise _unreadable(path, error) from error
    raise AssertionError("the last attempt returns or raises")


def _version(path: Path) -> tuple[int, int] | None:
    """Return a value that changes when a save replaces the manifest."""
    try:
        state = (path / MANIFEST).lstat()
    except (OSError, ValueError):
        return None
    return state.st_ino, state.st_mtime_ns


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {str(path)!r} cannot be read: {error}. Pass the folder that `sirius_dspy.save` wrote."
    )


# The program


def _program(program: dspy.Module | Build | None, manifest: Manifest) -> dspy.Module:
    if program is None:
        name = manifest.program.partition(":")[2]
        raise CheckpointError(
            f"The checkpoint is of the program {manifest.program!r}, and code is never loaded from a file. Pass the "
            f"class, or a function that builds the program: `load(folder, program={name})`."
        )
    if isinstance(program, dspy.Module):
        return program
    try:
        built = program()
    except Exception as error:
        raise CheckpointError(
            f"`program` could not be called without arguments: {error}. Pass a fresh program: "
            "`load(folder, program=MyProgram(...))`."
        ) from error
    if not isinstance(built, dspy.Module):
        raise CheckpointError(f"`program` gave a {type(built).__name__}, expected a `dspy.Module`.")
    return built


# The LMs


def _check_predictors(path: Path, manifest: Manifest, state: ProgramState) -> None:
    """Check that every stored predictor has an agent; the program's predictors are checked later."""
    owned = {name for entry in manifest.agents.values() for name in entry.predictors}
    if differing := sorted(owned ^ set(state.predictors)):
        raise CheckpointError(
            f"The checkpoint {str(path)!r} contradicts itself: the predictors {differing} are in its agents or in its "
            "program, not in both. Copy or save the checkpoint again."
        )


def _check_lms(manifest: Manifest, lms: Mapping[str, dspy.LM]) -> None:
    """Check before anything is built that all required LMs are passed."""
    names = {*manifest.agents, *(name for entry in manifest.agents.values() for name in entry.predictors)}
    if unknown := sorted(set(lms) - names):
        raise CheckpointError(f"`lms` names {unknown}; the checkpoint has the agents {list(manifest.agents)}.")
    for agent, entry in manifest.agents.items():
        for name, state in _list_needed_lms(agent, entry, lms):
            _check_lm(agent if not entry.settings else name, entry, state)


def _list_needed_lms(agent: str, entry: AgentEntry, lms: Mapping[str, dspy.LM]) -> Iterator[tuple[str, LMState]]:
    """Yield the predictors whose LM the caller does not pass, with its stored state."""
    if agent not in lms:
        yield from ((name, entry.settings.get(name, entry.lm)) for name in entry.predictors if name not in lms)


def _check_lm(name: str, entry: AgentEntry, state: LMState) -> None:
    advice = f"Pass the LM: `load(folder, lms={{{name!r}: ...}})`."
    if not is_known(state):
        raise CheckpointError(f"The LM of {name!r} is a {state.class_path!r}, which `load` does not build. {advice}")
    if entry.withheld:
        raise CheckpointError(
            f"The LM of {name!r} had the arguments {entry.withheld}. An endpoint or a header is never loaded from a "
            f"file, because your key would be sent there. {advice}"
        )
    check_lm(state)


def _build_lms(path: Path, manifest: Manifest, lms: Mapping[str, dspy.LM]) -> dict[str, dspy.LM]:
    """Map each predictor to its LM; predictors of an agent share an LM unless their settings differ."""
    built: dict[str, dspy.LM] = {}
    for agent, entry in manifest.agents.items():
        shared: dict[str, dspy.LM] = {}
        for name in entry.predictors:
            if name in lms or agent in lms:
                built[name] = lms[name] if name in lms else lms[agent]
                continue
            state = entry.settings.get(name, entry.lm)
            key = state.model_dump_json()
            if key not in shared:
                shared[key] = _build(path, entry, state)
            built[name] = shared[key]
    return built


def _build(path: Path, entry: AgentEntry, state: LMState) -> dspy.LM:
    is_inside = entry.weights is not None and state.model == entry.lm.model
    return build_lm(state, path / str(entry.weights) if is_inside else None)


# The adapter


def _adapter(state: AdapterState, configure: bool) -> Adapter | None:
    """Return the adapter that must become DSPy's default; `None` if it already is."""
    active = store_adapter(dspy.settings.adapter or dspy.ChatAdapter())
    if active == state:
        return None
    if not configure:
        raise CheckpointError(
            f"The checkpoint was made under {describe_adapter(state)}, but the active adapter is "
            f"{describe_adapter(active)}. Let `load` "
            "set it for all programs with `configure=True`, or call "
            f"`dspy.configure(adapter={describe_adapter(state)})` first."
        )
    return build_adapter(state)
