"""Training and exporting models from folders, with tiny random models."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

NEEDED = ("torch", "transformers", "peft", "gguf", "openvino_genai")
if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(absent)}", allow_module_level=True)

from sirius_dspy import LocalLM, LoraOptions, PlainAdapter, ProviderTrainer, load, save  # noqa: E402
from sirius_dspy.errors import (  # noqa: E402
    ExportError,
    MissingDependencyError,
    ModelNotFoundError,
    SettingsError,
    TrainingError,
)
from sirius_dspy.export import export  # noqa: E402
from sirius_dspy.local.models import resolve  # noqa: E402
from sirius_dspy.local.serving import engines  # noqa: E402
from tests.tiny_models import write_model  # noqa: E402

pytestmark = [
    pytest.mark.local,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # swig and gguf, at import
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

QUICK = {"epochs": 12, "batch_size": 2, "learning_rate": 1e-2, "warmup": 0.0, "stop_loss": 0.0}
ANSWERS = {"tea": "Ann", "rain": "Bob"}


def messages(hobby: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Who likes {hobby}?"}]


ROWS = [{"messages": [*messages(hobby), {"role": "assistant", "content": name}]} for hobby, name in ANSWERS.items()]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("home")
    patch.setenv("SIRIUS_HOME", str(folder))
    yield folder
    engines().close()
    patch.undo()


@pytest.fixture(scope="module", params=["qwen3", "gpt_neox"])  # one of each way to train
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalLM:
    folder = write_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return LocalLM(str(folder), max_tokens=6, temperature=0)


@pytest.fixture(scope="module")
def trained(base: LocalLM) -> LocalLM:
    lm = base.finetune(ROWS, "chat", QUICK).result()
    assert isinstance(lm, LocalLM), lm
    return lm


def in_transformers(model: Any, folder: Path, hobby: str) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer.apply_chat_template(
        messages(hobby), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**given, max_new_tokens=6, do_sample=False)
    return str(tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True))


def test_it_learns_and_leaves_a_model_folder_and_an_adapter(base: LocalLM, trained: LocalLM) -> None:
    before = base.model.removeprefix("local/").partition("@")[0]
    assert trained.model.startswith(f"local/{before}+lora@")
    assert trained.folder == trained.path
    assert {path.name for path in trained.folder.iterdir()} >= {"adapter", "config.json", "model.safetensors"}
    record = json.loads((trained.folder / "training.json").read_text())
    assert (record["base"], record["num_rows"], len(record["losses"])) == (base.model, 2, 12)
    for hobby, name in ANSWERS.items():
        assert trained(messages=messages(hobby))[0] == name
        assert sum(trained.score(messages(hobby), name)) > sum(base.score(messages(hobby), name)) + 3
    assert base(messages=messages("tea"))[0] != "Ann"


def test_the_same_job_is_found_and_weights_that_moved_are_the_same(
    base: LocalLM, trained: LocalLM, tmp_path: Path
) -> None:
    steps: list[Any] = []
    again = base.finetune(ROWS, "chat", {**QUICK, "on_progress": lambda *step: steps.append(step)}).result()
    assert (again.model, steps) == (trained.model, [])
    other = base.finetune(ROWS[:1], "chat", {**QUICK, "output_dir": trained.folder}).result()
    assert isinstance(other, TrainingError)
    copy = Path(shutil.copytree(trained.folder, tmp_path / "elsewhere"))
    assert LocalLM(copy).model == trained.model


def test_weights_from_another_machine_are_found_after_restore(
    trained: LocalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(trained.folder, tmp_path / "elsewhere"))
    monkeypatch.setenv("SIRIUS_HOME", str(tmp_path / "another home"))
    with pytest.raises(ModelNotFoundError):
        resolve(trained.model)
    ProviderTrainer().restore(trained, trained.model, copy)
    assert resolve(trained.model).path == copy


def test_exported_agents_answer_alike_in_other_tools(base: LocalLM, trained: LocalLM, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    program = dspy.Predict("question -> answer")
    program.set_lm(trained)
    with dspy.context(adapter=PlainAdapter()):
        checkpoint = save(program, tmp_path / "checkpoint")
        loaded = load(checkpoint, program=dspy.Predict("question -> answer"))
    assert loaded.lm.model == trained.model
    (name,) = export(checkpoint, tmp_path / "out", formats=["peft", "safetensors"])
    places = {kind: tmp_path / "out" / name / kind for kind in ("peft", "safetensors")}
    assert "sirius-alone" not in (places["peft"] / "adapter_config.json").read_text()
    whole = AutoModelForCausalLM.from_pretrained(places["safetensors"])
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), places["peft"])
    for hobby, answer in ANSWERS.items():
        assert in_transformers(whole, places["safetensors"], hobby) == answer
        assert in_transformers(adapted, places["peft"], hobby) == answer
    if "qwen3" not in base.model:
        with pytest.raises(ExportError, match=r"cannot be written as GGUF.*'gpt_neox'"):
            export(checkpoint, tmp_path / "gguf", formats=["gguf"])
        assert not (tmp_path / "gguf").exists()
        return
    place = export(checkpoint, tmp_path / "gguf", formats=["gguf"])[name]["gguf"]
    assert LocalLM(place / "model.gguf", max_tokens=6)(messages=messages("tea"))[0] == "Ann"
    modelfile = (place / "Modelfile").read_text()
    assert "TEMPLATE" in modelfile
    assert 'stop "<|im_end|>"\n' in modelfile
    assert 'stop "<|endoftext|>"\n' in modelfile


def test_fine_tuned_weights_are_trained_further(trained: LocalLM) -> None:
    if "qwen3" not in trained.model:
        return  # no other code, and it takes seconds
    rows = [{"messages": [*messages("cats"), {"role": "assistant", "content": "Cid"}]}]
    further = trained.finetune(rows, "chat", QUICK).result()
    assert isinstance(further, LocalLM), further
    assert further.model.startswith(trained.model.partition("@")[0] + "@")
    assert further(messages=messages("cats"))[0] == "Cid"


def test_training_on_four_bits_says_what_it_needs(base: LocalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    result = base.finetune(ROWS, "chat", {**QUICK, "qlora": True}).result()
    assert isinstance(result, MissingDependencyError)
    assert "pip install 'sirius-dspy[qlora]'" in str(result)
    with pytest.raises(MissingDependencyError, match="bitsandbytes"):
        LocalLM(base.path, lora=LoraOptions(qlora=True)).provider.check()
    with pytest.raises(SettingsError, match="GGUF file"):
        LocalLM("smollm2-135m-instruct", lora=LoraOptions(qlora=True))


def test_training_on_four_bits_teaches_weights_in_their_own_precision(base: LocalLM) -> None:
    pytest.importorskip("bitsandbytes")
    result = base.finetune(ROWS, "chat", {**QUICK, "qlora": True}).result()
    assert isinstance(result, LocalLM), result
    assert [result(messages=messages(hobby))[0] for hobby in ANSWERS] == list(ANSWERS.values())
    sizes = [(lm.path / "model.safetensors").stat().st_size for lm in (result, base)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
