"""Reads checkpoints: everything is checked before anything is built, and nothing is imported that a file names."""

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
from sirius_dspy.checkpoint.program import ProgramState, put_back, read_program, restore_program
from sirius_dspy.dspy_internals import mark_compiled
from sirius_dspy.errors import CheckpointError
from sirius_dspy.program import program_fingerprint, set_lms

_ATTEMPTS = 3
"""A checkpoint that is replaced while it is read is read again."""


def load(
    folder: str | Path,
    *,
    program: dspy.Module | Build | None = None,
    lms: Mapping[str, dspy.LM] | None = None,
    configure: bool = False,
) -> dspy.Module:
    """Bring a checkpoint back, in any process, on any machine.

    A checkpoint is data: whoever made it, loading runs nothing of it, and asks no server.

    Args:
        folder: What `save` wrote, or what `sirius_dspy.mlflow.register` registered: `models:/NAME@ALIAS` or
            `models:/NAME/VERSION`, in the registry that MLflow is set to.
        program: The program's class, a function that builds it, or a fresh one; the code is never taken from a file.
        lms: Agent or predictor name to LM, instead of the one that was saved; needed for LMs of your own classes, and
            for LMs with an endpoint, headers or the like, which are never taken from a file.
        configure: Whether to make the checkpoint's adapter DSPy's default (`dspy.configure(adapter=...)`) if another
            one is active. DSPy has one adapter for all programs, and agents answer badly under another adapter than
            they were trained with, so without this a different adapter is an error.

    Raises:
        CheckpointError: A file is missing, changed, or not what `save` writes; the program does not fit; or an LM or
            the adapter has to be given. The program that was passed is as it was then.
    """
    path = _local(folder)
    manifest, state = _check_and_read(path)
    if manifest.state is None or state is None:
        raise CheckpointError(
            f"{str(folder)!r} holds the agent {next(iter(manifest.agents))!r} alone. Call `load_agent` of "
            "`sirius_dspy.mlflow` for its LM, or load the program."
        )
    adapter = _adapter(manifest.adapter, configure)
    _check_predictors(path, manifest, state)
    _check_lms(manifest, lms or {})
    loaded = _program(program, manifest)
    with put_back(loaded):
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
    """Bring the LM of one agent back, for another program or to put an older version back.

    Args:
        folder: A checkpoint of a program or of an agent, or its address in MLflow's registry, as for `load`.
        agent: Its name; needed where the checkpoint holds several.

    Raises:
        CheckpointError: As for `load`, or there is no such agent.
    """
    path = _local(folder)
    agents = verify(path).agents
    name = next(iter(agents)) if agent is None and len(agents) == 1 else agent
    if name is None or name not in agents:
        raise CheckpointError(f"{str(folder)!r} has the agents {list(agents)}, not {name!r}. Name one of them.")
    _check_lm(name, agents[name], agents[name].lm)
    return _build(path, agents[name], agents[name].lm)


def adapter_of(folder: str | Path) -> Adapter:
    """The adapter that a checkpoint's agents learnt under.

    Raises:
        CheckpointError: It is one that is not built from a file.
    """
    return build_adapter(read_manifest(_local(folder)).adapter)


def verify(folder: str | Path) -> Manifest:
    """Check a checkpoint and every file of it against its manifest, and give the manifest back.

    Raises:
        CheckpointError: A file is missing, changed, or not what `save` writes.
    """
    return _check_and_read(_local(folder))[0]


def _local(folder: str | Path) -> Path:
    if not isinstance(folder, str | Path):
        raise CheckpointError(f"{folder!r} is no checkpoint. Pass the folder that `sirius_dspy.save` wrote.")
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
    """Changes when a save replaces the manifest."""
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
            f"The checkpoint is of the program {manifest.program!r}, and code is never taken from a file. Pass the "
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
    """Every predictor has an agent; the program's own predictors are compared with the state's later."""
    owned = {name for entry in manifest.agents.values() for name in entry.predictors}
    if differing := sorted(owned ^ set(state.predictors)):
        raise CheckpointError(
            f"The checkpoint {str(path)!r} contradicts itself: the predictors {differing} are in its agents or in its "
            "program, not in both. Copy or save the checkpoint again."
        )


def _check_lms(manifest: Manifest, lms: Mapping[str, dspy.LM]) -> None:
    """Say before anything is built which LMs have to be passed."""
    names = {*manifest.agents, *(name for entry in manifest.agents.values() for name in entry.predictors)}
    if unknown := sorted(set(lms) - names):
        raise CheckpointError(f"`lms` names {unknown}; the checkpoint has the agents {list(manifest.agents)}.")
    for agent, entry in manifest.agents.items():
        for name, state in _list_needed_lms(agent, entry, lms):
            _check_lm(agent if not entry.settings else name, entry, state)


def _list_needed_lms(agent: str, entry: AgentEntry, lms: Mapping[str, dspy.LM]) -> Iterator[tuple[str, LMState]]:
    """The predictors whose LM the caller does not give, and what was stored of it."""
    if agent not in lms:
        yield from ((name, entry.settings.get(name, entry.lm)) for name in entry.predictors if name not in lms)


def _check_lm(name: str, entry: AgentEntry, state: LMState) -> None:
    advice = f"Pass the LM: `load(folder, lms={{{name!r}: ...}})`."
    if not is_known(state):
        raise CheckpointError(
            f"The LM of {name!r} was of the class {state.class_path!r}, which is not DSPy's or ours. {advice}"
        )
    if entry.withheld:
        raise CheckpointError(
            f"The LM of {name!r} had the arguments {entry.withheld}. What says where a request goes, an endpoint or a "
            f"header, is never taken from a file, since your key would go there. {advice}"
        )
    check_lm(state)


def _build_lms(path: Path, manifest: Manifest, lms: Mapping[str, dspy.LM]) -> dict[str, dspy.LM]:
    """Predictor to its LM; predictors of an agent share one unless they ask it differently."""
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
    """The adapter to make DSPy's default; `None` if it is already."""
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
