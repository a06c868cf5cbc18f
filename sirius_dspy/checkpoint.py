"""A compiled program as a folder that works anywhere: program state, adapter, and one weight folder per agent.

    manifest.json         format, classes, LM of each agent, results, SHA-256 of every other file
    program.json          signatures and demonstrations of the predictors, as DSPy saves them
    agents/<agent>/       the agent's weights (PEFT adapter, merged GGUF) and `sources.jsonl`, the runs it learnt from

Nothing is pickled, and no API key is written. Loading imports only classes of dspy and sirius_dspy, and the program's.
A checkpoint of one agent is the same without the program and the other agents.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import dspy
from dspy.adapters.base import Adapter
from dspy.clients.base_lm import LM_CLASS_STATE_KEY

from sirius_dspy.errors import CheckpointError
from sirius_dspy.fetch import SCHEME, fetch_checkpoint
from sirius_dspy.program import predictor_names, program_fingerprint
from sirius_dspy.redact import remember_secrets, without_secrets
from sirius_dspy.run_dir import RunDir, file_name, write_text

FORMAT = 1
MANIFEST = "manifest.json"
PROGRAM = "program.json"

_OURS = ("dspy.", "sirius_dspy.")
_ENDPOINTS = ("api_base", "base_url")
_MODEL_IDS = ("model", "finetuning_model")


def save(program: dspy.Module, folder: str | Path) -> Path:
    """Write a program with its agents' weights.

    Args:
        program: A compiled program, or any whose predictors have LMs. The adapter that is active now is written down
            as the program's.
        folder: Where to; a checkpoint that is there already is replaced, in one step.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder holds something else, or an LM cannot be written down.
    """
    target = Path(folder)
    _refuse_foreign(target)
    with _replacing(target) as draft:
        results = getattr(program, "detailed_results", None) or {}
        agents = {agent: tuple(names) for agent, names in results.get("agents", {}).items()} or {
            name: (name,) for name in predictor_names(program)
        }
        manifest = {
            "format": FORMAT,
            "program": f"{type(program).__module__}:{type(program).__qualname__}",
            "fingerprint": program_fingerprint(program),
            "inputs": _inputs(program),
            "adapter": _adapter_state(dspy.settings.adapter or dspy.ChatAdapter()),
            "agents": {agent: _save_agent(draft, agent, names, program, results) for agent, names in agents.items()},
            "results": {key: value for key, value in results.items() if key not in ("run_dir", "library")},
        }
        write_text(draft / PROGRAM, json.dumps(_program_state(program), indent=2) + "\n")
        manifest["files"] = {name: _sha256(draft / name) for name in _files(draft)}
        write_text(draft / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return target


def load(
    folder: str | Path,
    *,
    program: dspy.Module | None = None,
    lms: Mapping[str, dspy.LM] | None = None,
    configure: bool = True,
) -> dspy.Module:
    """Bring a checkpoint back, in any process, on any machine.

    Args:
        folder: What `save` wrote, or what `sirius_dspy.mlflow.register` registered: `models:/NAME@ALIAS` or
            `models:/NAME/VERSION`, in the registry that MLflow is set to.
        program: A fresh program of the same structure. By default the class that was saved is imported and built
            without arguments.
        lms: Agent name to LM, instead of the one that was saved; needed for LMs behind an endpoint of one's own, which
            is never taken from a file.
        configure: Make the checkpoint's adapter DSPy's default (`dspy.configure(adapter=...)`) if another is active:
            DSPy has one adapter for all programs, and agents that learnt under another prompt answer badly. With
            `False` a differing adapter is an error.

    Raises:
        CheckpointError: A file is missing or changed, the program does not fit, or an LM cannot be rebuilt.
    """
    path = _local(folder)
    manifest = verify(path)
    if PROGRAM not in manifest["files"]:
        raise CheckpointError(
            f"{str(folder)!r} holds the agent {next(iter(manifest['agents']))!r} alone. Call `load_agent` of "
            "`sirius_dspy.mlflow` for its LM, or load the program."
        )
    loaded = program if program is not None else _build(manifest["program"])
    _load_program_state(loaded, json.loads((path / PROGRAM).read_text(encoding="utf-8")))
    if program_fingerprint(loaded) != manifest["fingerprint"]:
        raise CheckpointError(
            f"The signatures of {type(loaded).__name__} are not those of the program in {str(path)!r}, which the "
            "agents were trained for. Pass the program that was saved."
        )
    predictors = predictor_names(loaded)
    for agent, entry in manifest["agents"].items():
        lm = (lms or {}).get(agent) or _load_lm(path, agent, entry)
        for name in entry["predictors"]:
            predictors[name].lm = lm
    _use_adapter(manifest["adapter"], configure)
    loaded._compiled = True
    vars(loaded)["detailed_results"] = manifest["results"]
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
    agents = verify(path)["agents"]
    name = next(iter(agents)) if agent is None and len(agents) == 1 else agent
    if name is None or name not in agents:
        raise CheckpointError(f"{str(folder)!r} has the agents {list(agents)}, not {name!r}. Name one of them.")
    return _load_lm(path, name, agents[name])


def save_agent(folder: str | Path, agent: str, target: str | Path) -> Path:
    """Write a checkpoint of one agent out of one of a program.

    Args:
        folder: The program's.
        agent: Its name.
        target: Where to; a checkpoint that is there already is replaced, in one step.

    Raises:
        CheckpointError: A file is missing or changed, or `target` holds something else.
    """
    source, target = Path(folder), Path(target)
    manifest = verify(source)
    _refuse_foreign(target)
    with _replacing(target) as draft:
        if (source / _agent_folder(agent)).is_dir():
            _link_tree(source / _agent_folder(agent), draft / _agent_folder(agent))
        own = {name: known for name, known in manifest["files"].items() if name.startswith(f"{_agent_folder(agent)}/")}
        part = {**manifest, "agents": {agent: manifest["agents"][agent]}, "files": own}
        write_text(draft / MANIFEST, json.dumps(part, indent=2) + "\n")
    return target


def adapter_of(folder: str | Path) -> Adapter:
    """The adapter that a checkpoint's agents learnt under.

    Raises:
        CheckpointError: It is not one of dspy or sirius_dspy.
    """
    state = _manifest(Path(folder))["adapter"]
    if not state["class"].startswith(_OURS):
        raise CheckpointError(
            f"The checkpoint was made under {state['class']!r}, which is not of dspy or sirius_dspy. Call "
            "`dspy.configure(adapter=...)` with it and load the checkpoint with `configure=False`."
        )
    return _import(state["class"])(**state["arguments"])


def verify(folder: str | Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest, and give the manifest back.

    Raises:
        CheckpointError: A file is missing or changed.
    """
    path = Path(folder)
    manifest = _manifest(path)
    _verify(path, manifest)
    return manifest


# Saving


def _save_agent(
    draft: Path, agent: str, names: tuple[str, ...], program: dspy.Module, results: Mapping[str, Any]
) -> dict[str, Any]:
    lm = predictor_names(program)[names[0]].lm or dspy.settings.lm
    if lm is None:
        raise CheckpointError(f"Agent {agent!r} has no LM. Call `program.set_lm(lm)` before saving.")
    folder = draft / _agent_folder(agent)
    entry: dict[str, Any] = {"predictors": list(names), "lm": _lm_state(agent, lm), "weights": None}
    job = _job(agent, lm.model, results)
    if job is not None and _has_weights(lm):
        _link_tree(Path(lm.folder), folder)
        entry["weights"] = _agent_folder(agent)
    if job is not None:
        sources = RunDir(Path(results["run_dir"])).training_file(job, agent).with_suffix(".sources.jsonl")
        if sources.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources, folder / "sources.jsonl")
    return entry


def _agent_folder(agent: str) -> str:
    return f"agents/{file_name(agent)}"


def _job(agent: str, model: str, results: Mapping[str, Any]) -> int | None:
    """The iteration that trained these weights; `None` for the ones the agent started with."""
    for entry in results.get("iterations", []):
        if entry.get("agents", {}).get(agent, {}).get("lm") == model:
            return int(entry["iteration"])
    return None


def _has_weights(lm: dspy.LM) -> bool:
    """Whether an LM keeps its weights in a folder and can be rebuilt from one, as `LocalLM` does."""
    return getattr(lm, "folder", None) is not None and hasattr(type(lm), "from_folder")


def _lm_state(agent: str, lm: dspy.LM) -> dict[str, Any]:
    remember_secrets(lm)
    try:
        state = lm.dump_state()
        json.dumps(state)
    except TypeError as error:
        raise CheckpointError(
            f"The LM {lm.model!r} of agent {agent!r} cannot be written down: {error} Save the program with an LM that "
            "can, and pass this one to `load(lms=...)`."
        ) from error
    return {name: state[name] if name in _MODEL_IDS else value for name, value in without_secrets(state).items()}


def _program_state(program: dspy.Module) -> dict[str, Any]:
    """DSPy's state of each predictor, by name; its LM is in the manifest."""
    return {name: part.dump_state() | {"lm": None} for name, part in program.named_parameters()}


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


def _adapter_state(adapter: Adapter) -> dict[str, Any]:
    parameters = inspect.signature(type(adapter).__init__).parameters
    values = {name: getattr(adapter, name, None) for name in parameters if name not in ("self", "callbacks")}
    plain = {name: value for name, value in values.items() if isinstance(value, str | bool | int | float)}
    return {"class": f"{type(adapter).__module__}:{type(adapter).__qualname__}", "arguments": plain}


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links where the file system allows, since weights are large and never change."""

    def link(origin: str, copy: str) -> str:
        try:
            os.link(origin, copy)
        except OSError:
            shutil.copyfile(origin, copy)
        return copy

    shutil.copytree(source, target, copy_function=link)


def _refuse_foreign(target: Path) -> None:
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST).exists())):
        raise CheckpointError(f"{str(target)!r} holds something that is not a checkpoint. Choose another folder.")


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` when all went well; before that nothing of `target` changes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (target.with_name(f".{target.name}.{what}.{uuid4().hex[:8]}") for what in ("new", "old"))
    draft.mkdir()
    try:
        yield draft
        if target.exists():
            target.rename(old)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


# Loading


def _local(folder: str | Path) -> Path:
    return fetch_checkpoint(folder) if isinstance(folder, str) and folder.startswith(SCHEME) else Path(folder)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{str(path)!r} is no checkpoint: it has no {MANIFEST}. Pass the folder that `sirius_dspy.save` wrote."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"The {MANIFEST} in {str(path)!r} is damaged: {error}. Save the program again."
        ) from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} has format {manifest.get('format')!r}, this version reads {FORMAT}. Install "
            "the version of sirius-dspy that wrote it, or a newer one."
        )
    return manifest


def _verify(path: Path, manifest: Mapping[str, Any]) -> None:
    for name, expected in manifest["files"].items():
        if not (path / name).is_file():
            raise CheckpointError(f"The checkpoint {str(path)!r} lacks the file {name!r}. Copy the whole folder again.")
        if _sha256(path / name) != expected:
            raise CheckpointError(
                f"The file {name!r} of the checkpoint {str(path)!r} is not the one that was saved. Copy it again."
            )


def _build(class_path: str) -> dspy.Module:
    try:
        built = _import(class_path)()
    except (ImportError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"The program class {class_path!r} cannot be built here: {error}. Pass a fresh program: "
            "`load(folder, program=MyProgram(...))`."
        ) from error
    if not isinstance(built, dspy.Module):
        raise CheckpointError(f"{class_path!r} is no `dspy.Module`. Pass a fresh program: `load(folder, program=...)`.")
    return built


def _load_program_state(program: dspy.Module, state: Mapping[str, Any]) -> None:
    expected, found = sorted(state), sorted(name for name, _ in program.named_parameters())
    if expected != found:
        raise CheckpointError(
            f"The checkpoint has the predictors {expected}, the program has {found}. Pass the program that was saved."
        )
    for name, part in program.named_parameters():
        part.load_state(state[name])


def _load_lm(path: Path, agent: str, entry: Mapping[str, Any]) -> dspy.LM:
    state = dict(entry["lm"])
    if found := [name for name in _ENDPOINTS if state.get(name)]:
        raise CheckpointError(
            f"Agent {agent!r} used the endpoint {state[found[0]]!r}. An endpoint is never taken from a file, since "
            f"your key would go there: pass the LM, `load(folder, lms={{{agent!r}: dspy.LM(...)}})`."
        )
    class_path = state.pop(LM_CLASS_STATE_KEY, "dspy.clients.lm.LM")
    if not class_path.startswith(_OURS):
        raise CheckpointError(
            f"Agent {agent!r} used an LM of class {class_path!r}, which is not of dspy or sirius_dspy. Pass it: "
            f"`load(folder, lms={{{agent!r}: ...}})`."
        )
    lm_class = _import(":".join(class_path.rsplit(".", 1)))
    if entry["weights"] is None:
        return lm_class.load_state(state)
    lm = lm_class.from_folder(path / entry["weights"], state)
    if lm.model != state["model"]:
        raise CheckpointError(f"The weights of agent {agent!r} are {lm.model!r}, expected {state['model']!r}.")
    return lm


def _use_adapter(state: Mapping[str, Any], configure: bool) -> None:
    active = dspy.settings.adapter or dspy.ChatAdapter()
    if _adapter_state(active) == state:
        return
    arguments = ", ".join(f"{name}={value!r}" for name, value in state["arguments"].items())
    name = state["class"].split(":")[1]
    if not configure or not state["class"].startswith(_OURS):
        raise CheckpointError(
            f"The checkpoint was made under {name}({arguments}), the active adapter is {type(active).__name__}. Call "
            f"`dspy.configure(adapter={name}({arguments}))` before `load`."
        )
    dspy.configure(adapter=_import(state["class"])(**state["arguments"]))


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
