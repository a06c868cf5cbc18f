"""Saves checkpoints."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy.checkpoint.folder import agent_name, digests, replace_checkpoint, state_name
from sirius_dspy.checkpoint.loading import verify
from sirius_dspy.checkpoint.manifest import FORMAT, MANIFEST, check_manifest
from sirius_dspy.checkpoint.naming import path_of
from sirius_dspy.checkpoint.parts import store_adapter, store_lm
from sirius_dspy.checkpoint.program import store_program
from sirius_dspy.errors import CheckpointError
from sirius_dspy.optimizer.results import CompileResult
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.program import predictor_names, program_fingerprint

SOURCES = "sources.jsonl"


def save(program: dspy.Module, folder: str | Path) -> Path:
    """Save a program with the weights of its agents.

    Only the settings that determine an LM's answers are stored, such as model and temperature. Endpoints and headers
    are never stored; an LM that has them must be passed to `load`. Keys are not stored either; a loaded LM reads them
    from the environment.

    Args:
        program: A compiled program, or any program whose predictors have LMs. The active adapter is stored with it.
        folder: The target folder. An existing checkpoint in it is replaced atomically.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder holds something else or cannot be written, an agent has no LM, or a demonstration
            holds a value that cannot be stored. An existing checkpoint is left unchanged.
    """
    if not isinstance(program, dspy.Module):
        raise CheckpointError(f"{type(program).__name__} is not a program. Pass a `dspy.Module`.")
    target = Path(folder)
    results = _results(program)
    agents = _agents(program, results)
    state = json.dumps(store_program(program), indent=2) + "\n"
    plain = {
        "format": FORMAT,
        "program": path_of(type(program)),
        "fingerprint": program_fingerprint(program),
        "inputs": _inputs(program),
        "adapter": store_adapter(dspy.settings.adapter or dspy.ChatAdapter()).model_dump(by_alias=True),
        "results": results and replace(results, run_dir="", library="").to_dict(),
        "state": state_name(state),
    }
    with replace_checkpoint(target) as draft:
        (draft / state_name(state)).write_text(state, encoding="utf-8")
        entries = {agent: _save_agent(draft, agent, names, program, results) for agent, names in agents.items()}
        _write_manifest(draft, {**plain, "agents": entries}, target)
    return target


def save_agent(folder: str | Path, agent: str, target: str | Path) -> Path:
    """Save one agent of a program's checkpoint as a checkpoint of its own.

    Args:
        folder: The program's checkpoint.
        agent: Name of the agent.
        target: The target folder. An existing checkpoint in it is replaced atomically.

    Raises:
        CheckpointError: A file is missing or changed, the agent does not exist, or `target` holds something else or
            cannot be written.
    """
    source, target = Path(folder), Path(target)
    manifest = verify(source)
    if agent not in manifest.agents:
        raise CheckpointError(f"{str(folder)!r} has the agents {list(manifest.agents)}, not {agent!r}. Name one.")
    with replace_checkpoint(target) as draft:
        if files := manifest.agents[agent].folder:
            _link_tree(source / files, draft / files)
        plain = manifest.model_dump(by_alias=True, exclude_unset=True)
        part = {**plain, "agents": {agent: plain["agents"][agent]}, "state": None}
        _write_manifest(draft, part, target)
    return target


def _write_manifest(draft: Path, plain: dict[str, Any], target: Path) -> None:
    """Check that `load` would accept the manifest, and write it as the last file."""
    whole = {**plain, "files": digests(draft)}
    check_manifest(whole, str(target))
    (draft / MANIFEST).write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _results(program: dspy.Module) -> CompileResult | None:
    """Return the results of the compile, or `None`: those of DSPy's optimizers are not stored."""
    results = getattr(program, "detailed_results", None)
    return results if isinstance(results, CompileResult) else None


def _agents(program: dspy.Module, results: CompileResult | None) -> dict[str, Sequence[str]]:
    """Map agents to predictors as they were compiled; every other predictor is its own agent."""
    predictors = predictor_names(program)
    if not predictors:
        raise CheckpointError(f"{type(program).__name__} has no predictors, so there is nothing to save.")
    agents: dict[str, Sequence[str]] = {} if results is None else dict(results.agents)
    owned = [name for names in agents.values() for name in names]
    if unknown := sorted(set(owned) - set(predictors)):
        raise CheckpointError(
            f"`detailed_results` of the program names the predictors {unknown}, which it does not have: "
            f"{list(predictors)}. Save the program as it was compiled."
        )
    return agents | {name: (name,) for name in predictors if name not in owned}


def _save_agent(
    draft: Path, agent: str, names: Sequence[str], program: dspy.Module, results: CompileResult | None
) -> dict[str, Any]:
    lms = {name: predictor_names(program)[name].lm or dspy.settings.lm for name in names}
    if missing := [name for name, lm in lms.items() if lm is None]:
        raise CheckpointError(f"Predictor {missing[0]!r} has no LM. Call `program.set_lm(lm)` before saving.")
    stored = {name: store_lm(lm) for name, lm in lms.items()}
    states = {name: state.model_dump(by_alias=True, exclude_unset=True) for name, (state, _) in stored.items()}
    first, *others = names
    return {
        "predictors": list(names),
        "lm": states[first],
        "settings": {name: states[name] for name in others if states[name] != states[first]},
        "withheld": sorted({argument for _, withheld in stored.values() for argument in withheld}),
        **_save_files(draft, agent, lms[first], results),
    }


def _save_files(draft: Path, agent: str, lm: dspy.LM, results: CompileResult | None) -> dict[str, str | None]:
    """Put the weights and the list of their sources into the draft, and return their paths."""
    job = _job(agent, lm.model, results)
    weights = getattr(lm, "folder", None) if job is not None and hasattr(type(lm), "from_folder") else None
    folder = draft / "agent"
    if weights is not None:
        _link_tree(Path(weights), folder)
    if (sources := _sources(agent, job, results)) is not None:
        folder.mkdir(exist_ok=True)
        (folder / SOURCES).unlink(missing_ok=True)
        shutil.copyfile(sources, folder / SOURCES)
    if not folder.is_dir():
        return {"weights": None, "sources": None}
    name = agent_name(agent, folder)
    (draft / name).parent.mkdir(exist_ok=True)
    folder.rename(draft / name)
    has_sources = (draft / name / SOURCES).is_file()
    return {"weights": None if weights is None else name, "sources": f"{name}/{SOURCES}" if has_sources else None}


def _job(agent: str, model: str, results: CompileResult | None) -> int | None:
    """Return the iteration that trained these weights; `None` for the agent's initial weights."""
    for entry in () if results is None else results.iterations:
        if agent in entry.agents and entry.agents[agent].lm == model:
            return entry.iteration
    return None


def _sources(agent: str, job: int | None, results: CompileResult | None) -> Path | None:
    """Return the list of the agent's training runs; a loaded program has it beside its weights already."""
    if job is None or results is None or not results.run_dir:
        return None
    path = RunDir(Path(results.run_dir)).training_file(job, agent).with_suffix(".sources.jsonl")
    return path if path.exists() else None


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder with hard links if the file system allows, because weights are large and never change."""

    def link(origin: str, copy: str) -> str:
        try:
            os.link(os.path.realpath(origin), copy)
        except OSError:
            shutil.copyfile(origin, copy)
        return copy

    shutil.copytree(source, target, copy_function=link)


def _inputs(program: dspy.Module) -> dict[str, str] | None:
    """Input field to its type, as far as the program says it; for servers, which have no examples to look at."""
    forward = getattr(type(program), "forward", None)  # of the class: DSPy warns where an instance's is touched
    if forward is None:
        return None
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters):
        fields = getattr(getattr(program, "signature", None), "input_fields", None)
        return None if fields is None else {name: _type_name(item.annotation) for name, item in fields.items()}
    return {item.name: _type_name(item.annotation) for item in parameters}


def _type_name(annotation: Any) -> str:
    """`int` of `int` and of `"int"`, which a postponed annotation is."""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) and annotation is not inspect.Parameter.empty else "Any"
