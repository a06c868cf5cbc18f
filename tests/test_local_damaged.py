"""What is no readable model is refused by name, before anything is loaded or fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sirius_dspy import LocalLM
from sirius_dspy.errors import ModelNotFoundError, UnreadableModelError
from sirius_dspy.local.weights import check_folder, read_config

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("weight_map", [None, [], ["a"], {}, {"a": 1}, {"a": None, "b": "c"}, {"a": "../b"}, "text", 3])
def test_an_index_that_names_no_files(weight_map: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UnreadableModelError, match="names no files, or files outside"):
        check_folder(tmp_path)


@pytest.mark.parametrize("part", [None, [], "text", 3])
def test_a_configuration_with_odd_parts(part: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "text_config": part}))
    assert read_config(tmp_path)["model_type"] == "llama"


@pytest.mark.parametrize("name", ["models/missing.gguf", "../missing", "./missing", "missing.gguf"])
def test_a_path_that_leads_nowhere_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*arguments: object, **options: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    with pytest.raises(ModelNotFoundError):
        LocalLM(name)


def test_a_folder_may_be_called_like_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "model.gguf"
    folder.mkdir()
    with pytest.raises((ModelNotFoundError, UnreadableModelError)):
        LocalLM(str(folder))
