"""Trained agents in the formats of other tools: what is written, what is refused, and that others answer alike."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from typer.testing import CliRunner

from sirius_dspy import LocalLM, PlainAdapter, save
from sirius_dspy.cli import app
from sirius_dspy.errors import CheckpointError, ExportError, SettingsError
from sirius_dspy.export import EXPORTS, export, push
from sirius_dspy.local.serving import engines
from tests.http_server import Handler, serving
from tests.toy import compiled_by

NEEDED = ("torch", "openvino_genai", "gguf", "peft", "transformers")
needs_model = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)}"
)
QUICK = {"epochs": 4, "batch_size": 4, "learning_rate": 2e-3, "warmup": 0.0}
NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal")


class Pair(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.finder = dspy.Predict("text: str -> name: str")
        self.asker = dspy.Predict("name: str -> question: str")

    def forward(self, text: str) -> dspy.Prediction:
        return self.asker(name=self.finder(text=text).name)


def messages(name: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Copy the name."}, {"role": "user", "content": f"text: {name} likes tea."}]


def row(name: str) -> dict[str, Any]:
    return {"messages": [*messages(name), {"role": "assistant", "content": f"name: {name}"}]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before, folder = os.environ.get("SIRIUS_HOME"), tmp_path_factory.mktemp("home")
    os.environ["SIRIUS_HOME"] = str(folder)
    yield folder
    engines().close()
    os.environ.pop("SIRIUS_HOME")
    if before is not None:
        os.environ["SIRIUS_HOME"] = before


@pytest.fixture(scope="module")
def finder(home: Path) -> LocalLM:
    """The base model after one short fine-tune."""
    trained = LocalLM(max_tokens=8).finetune([row(name) for name in NAMES], "chat", QUICK).result()
    assert isinstance(trained, LocalLM), trained
    return trained


@pytest.fixture(scope="module")
def checkpoint(finder: LocalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with one trained agent, and one that has the base model's weights."""
    program = Pair()
    program.finder.lm, program.asker.lm = finder, LocalLM(max_tokens=8)
    with dspy.context(adapter=PlainAdapter()):
        return save(program, tmp_path_factory.mktemp("saved") / "checkpoint")


@pytest.fixture(scope="module")
def written(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(export(checkpoint, tmp_path_factory.mktemp("exported"), agents=["finder"])["finder"])


@pytest.mark.local
@needs_model
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
class TestOfTheRealModel:
    def test_transformers_and_peft_answer_as_we_do(self, finder: LocalLM, written: dict[str, Path]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(written["safetensors"])
        whole = AutoModelForCausalLM.from_pretrained(written["safetensors"])
        base = written["peft"].with_name("base")
        export_base(base)
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), written["peft"])
        for name in NAMES:
            given = tokenizer.apply_chat_template(
                messages(name), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            ours = finder(messages=messages(name), temperature=0)[0]
            for model in (whole, adapted):
                ids = model.generate(**given, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id)
                theirs = tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
                assert theirs == ours == f"name: {name}"

    def test_llama_cpp_answers_as_we_do(self, written: dict[str, Path]) -> None:
        xllamacpp = pytest.importorskip("xllamacpp")
        settings = xllamacpp.CommonParams()
        settings.model.path = str(written["gguf"] / "model.gguf")
        settings.n_ctx, settings.use_jinja, settings.verbosity = 1024, True, 0
        server = xllamacpp.Server(settings)
        for name in NAMES:
            reply = server.handle_chat_completions({"messages": messages(name), "temperature": 0, "max_tokens": 8})
            assert reply["choices"][0]["message"]["content"] == f"name: {name}"

    def test_the_files_say_what_the_agent_is(self, written: dict[str, Path]) -> None:
        config = json.loads((written["peft"] / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        modelfile = (written["gguf"] / "Modelfile").read_text()
        assert modelfile.startswith("FROM ./model.gguf\nTEMPLATE")
        assert "PARAMETER num_predict 8\n" in modelfile
        assert 'PARAMETER stop "<|im_end|>"' in modelfile
        for kind, library in (("peft", "peft"), ("gguf", "gguf"), ("safetensors", "transformers")):
            card = (written[kind] / "README.md").read_text()
            assert f'library_name: "{library}"' in card
            assert "`sirius_dspy.adapter.PlainAdapter`" in card
            assert "Rows: 8" in card
            assert str(Path.home()) not in card

    def test_an_agent_that_was_not_trained_has_whole_weights_only(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="'asker' was not trained, so it has no adapter"):
            export(checkpoint, tmp_path / "all")
        assert not (tmp_path / "all").exists()  # nothing of the other agent either
        places = export(checkpoint, tmp_path / "gguf", formats=["gguf"])
        assert {name: list(formats) for name, formats in places.items()} == {"finder": ["gguf"], "asker": ["gguf"]}

    def test_an_adapter_that_continues_fine_tuned_weights_is_refused(self, finder: LocalLM, tmp_path: Path) -> None:
        again = finder.finetune([row("Ann")], "chat", {**QUICK, "epochs": 1}).result()
        assert isinstance(again, LocalLM), again
        program = Pair()
        program.set_lm(again)
        with dspy.context(adapter=PlainAdapter()):
            saved = save(program, tmp_path / "checkpoint")
        with pytest.raises(ExportError, match="continues fine-tuned weights"):
            export(saved, tmp_path / "out", formats=["peft"])
        assert (export(saved, tmp_path / "out", formats=["gguf"])["finder"]["gguf"] / "model.gguf").is_file()

    def test_the_command_writes_the_same_and_never_over_something(self, checkpoint: Path, tmp_path: Path) -> None:
        arguments = ["export", str(checkpoint), str(tmp_path / "out"), "--to", "peft", "--agent", "finder", "--json"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        place = tmp_path / "out" / "finder" / "peft"
        assert json.loads(result.stdout) == {"written": {"finder": {"peft": str(place)}}, "pushed": None}
        assert (place / "adapter_model.safetensors").is_file()
        again = CliRunner().invoke(app, arguments)
        assert again.exit_code == 1
        assert "exists" in again.output

    def test_an_upload_sends_the_files_of_the_folder(
        self, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = written["gguf"].with_name("small")
        folder.mkdir(exist_ok=True)
        for name in ("README.md", "Modelfile"):
            (folder / name).write_bytes((written["gguf"] / name).read_bytes())
        with serving(Hub, commits=[]) as hub:
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.uri)
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            monkeypatch.setenv("HF_TOKEN", "hf_secret")
            assert push(folder, "me/finder") == f"{hub.uri}/me/finder/commit/1"
        lines = [json.loads(line) for line in hub.commits[0].splitlines()]
        assert sorted(line["value"]["path"] for line in lines if line["key"] == "file") == ["Modelfile", "README.md"]


class Hub(Handler):
    """As much of the Hugging Face hub as an upload of small files needs."""

    def do_POST(self) -> None:
        body, place, uri = self.read(), self.path.partition("?")[0], self.server.uri  # type: ignore[attr-defined]
        if place.endswith("/repos/create"):
            self.answer({"url": f"{uri}/me/finder", "name": "me/finder"})
        elif place == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in place:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer({"files": files})
        elif "/commit/" in place:
            self.server.commits.append(body)  # type: ignore[attr-defined]
            self.answer({"commitUrl": f"{uri}/me/finder/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer({"error": f"unexpected {place}"}, 404)

    def do_GET(self) -> None:
        self.answer({"id": "me/finder", "sha": "1", "siblings": []})


def export_base(folder: Path) -> None:
    """Write the base model as Transformers reads it."""
    from sirius_dspy.local.unquantized import write_model

    folder.mkdir(exist_ok=True)
    write_model(LocalLM().path, folder)


@pytest.fixture
def toy_checkpoint(tmp_path: Path, chat_adapter: None) -> Path:
    return save(compiled_by(tmp_path / "run", iterations=1), tmp_path / "toy")


def test_agents_of_other_lms_have_no_weights_to_export(toy_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'doubler' runs on .* whose weights are not here"):
        export(toy_checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"formats": ["onnx"]}, "formats"),
        ({"formats": "peft"}, "formats"),
        ({"formats": []}, "formats"),
        ({"agents": "doubler"}, "agents"),
        ({"base_model": 3}, "base_model"),
    ],
)
def test_settings_of_another_kind_are_named(toy_checkpoint: Path, tmp_path: Path, settings: Any, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        export(toy_checkpoint, tmp_path / "out", **settings)


def test_what_is_not_there_is_named(toy_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nobody"):
        export(toy_checkpoint, tmp_path / "out", agents=["nobody"])
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        export(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ExportError, match="not an exported agent"):
        push(tmp_path, "me/finder")


def test_an_upload_needs_one_agent_and_one_format(toy_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["export", str(toy_checkpoint), str(tmp_path / "out"), "--push-to", "me/finder"]
    result = CliRunner().invoke(app, [*arguments, "--to", EXPORTS[0]])
    assert result.exit_code == 1
    assert "--agent" in result.output
