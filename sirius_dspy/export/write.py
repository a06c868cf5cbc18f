"""Writes all formats of all agents into one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sirius_dspy import checks
from sirius_dspy.errors import ExportError
from sirius_dspy.export.agents import EXPORTS, Format, TrainedAgent, adapter_folder, check_gguf, read_agents
from sirius_dspy.export.card import write_card
from sirius_dspy.export.modelfile import write_modelfile
from sirius_dspy.files import file_name
from sirius_dspy.local.home import new_folder
from sirius_dspy.local.weights import files_of


def export(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    formats: Sequence[Format] = EXPORTS,
    agents: Sequence[str] | None = None,
    base_model: str | None = None,
) -> Mapping[str, Mapping[Format, Path]]:
    """Write trained agents in the formats of other tools, below `folder/AGENT/FORMAT/`.

    Prompts must look as they did in training. The model card names the DSPy adapter that writes them.

    Args:
        checkpoint: A folder that `sirius_dspy.save` wrote, or the address of a registered model; see `load`.
        folder: Where to write; folders of formats in it must not exist yet.
        formats: Any of `peft`, `gguf` and `safetensors`; all by default.
        agents: Names of agents; all by default.
        base_model: Id of the base model on the Hugging Face hub, for the adapter's configuration and the model cards.
            For the embedded model, it is known.

    Returns:
        Agent to format to folder.

    Raises:
        SettingsError: A setting is of the wrong kind.
        CheckpointError: The checkpoint cannot be read, or an agent does not exist.
        ExportError: An agent has no local weights, was not trained (`peft`), cannot be converted (`gguf`), or a folder
            exists. Nothing was written.
    """
    kinds = {
        "formats": checks.several(checks.choice(*EXPORTS), "a list of formats, such as ['peft']"),
        "agents": checks.optional(checks.NAMES),
    }
    kinds |= {"folder": checks.PATH, "base_model": checks.optional(checks.TEXT)}
    given = {"formats": formats, "agents": agents, "folder": folder, "base_model": base_model}
    checks.check("export", given, kinds)
    trained = read_agents(checkpoint, agents, base_model)
    places = {
        agent.name: {kind: Path(folder) / file_name(agent.name) / kind for kind in dict.fromkeys(formats)}
        for agent in trained
    }
    _check(trained, places)
    for agent in trained:
        for kind, place in places[agent.name].items():
            with new_folder(place) as draft:
                _WRITERS[kind](agent, draft)
                write_card(agent, kind, draft / "README.md")
    return places


def _check(trained: Sequence[TrainedAgent], places: Mapping[str, Mapping[Format, Path]]) -> None:
    for agent in trained:
        for kind, place in places[agent.name].items():
            if place.exists():
                raise ExportError(f"{str(place)!r} exists. Move it away, or export into another folder.")
            if kind == "peft":
                adapter_folder(agent)
            if kind == "gguf":
                check_gguf(agent)


def _write_peft(agent: TrainedAgent, folder: Path) -> None:
    """Copy the adapter, and name its base model."""
    shutil.copytree(adapter_folder(agent), folder, dirs_exist_ok=True)
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = agent.base_model or agent.training["base"]
    config.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _write_gguf(agent: TrainedAgent, folder: Path) -> None:
    if agent.weights.is_gguf:
        shutil.copyfile(agent.weights.path, folder / "model.gguf")
    else:
        from sirius_dspy.local.convert import convert

        convert(agent.weights, agent.chat, folder / "model.gguf", agent.weights.name)
    write_modelfile(agent, folder / "Modelfile")


def _write_safetensors(agent: TrainedAgent, folder: Path) -> None:
    """Copy the files of a model folder; de-quantize a GGUF file, and add the tokenizer with its chat template."""
    if not agent.weights.is_gguf:
        for file in files_of(agent.weights.path):
            shutil.copyfile(file, folder / file.name)
        return
    from sirius_dspy.local.unquantized import write_model

    write_model(agent.weights.path, folder)
    shutil.copytree(agent.chat.folder, folder, dirs_exist_ok=True)


_WRITERS = {"peft": _write_peft, "gguf": _write_gguf, "safetensors": _write_safetensors}
