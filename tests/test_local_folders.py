"""Model folders in Hugging Face's format, with tiny random models: what is read, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for package in ("torch", "transformers", "peft", "safetensors"):
    pytest.importorskip(package)

from sirius_dspy import LocalLM  # noqa: E402
from sirius_dspy.errors import ModelNotFoundError, UnreadableModelError  # noqa: E402
from sirius_dspy.local.chat import load_chat  # noqa: E402
from sirius_dspy.local.models import find, resolve  # noqa: E402
from sirius_dspy.local.serving import engines  # noqa: E402
from tests.tiny_models import END, LLAMA3_SCALING, STOP, write_model  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # swig and gguf, at import
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

MESSAGES = [{"role": "user", "content": "Who likes tea?"}]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("home")
    patch.setenv("SIRIUS_HOME", str(folder))
    yield folder
    engines().close()
    patch.undo()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {kind: write_model(place / kind, kind) for kind in ("llama", "qwen2", "qwen3", "gpt_neox")}


def in_transformers(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def log_probs(folder: Path, reply: str) -> list[float]:
    """What Transformers says of a reply and its end of turn."""
    import torch

    model, tokenizer = in_transformers(folder)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    ids = [*prompt, *tokenizer(reply, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids(END)]
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(scores[place - 1, ids[place]]) for place in range(len(prompt), len(ids))]


@pytest.fixture
def on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in float32 on every machine, as the comparison does."""
    import torch

    monkeypatch.setattr("sirius_dspy.local.train.fast_precision", lambda: torch.float32)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt_neox"])
def test_a_folder_answers_as_in_transformers(folders: dict[str, Path], on_torch: None, kind: str) -> None:
    import torch

    lm = LocalLM(str(folders[kind]), max_tokens=12, temperature=0, device="cpu")
    model, tokenizer = in_transformers(folders[kind])
    given = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert lm(messages=MESSAGES)[0] == tokenizer.decode(ids, skip_special_tokens=True)
    assert lm.score(MESSAGES, "the tea of Bob") == pytest.approx(log_probs(folders[kind], "the tea of Bob"), abs=1e-3)
    assert lm.model.startswith(f"local/{kind}@")
    assert torch.isfinite(torch.tensor(lm.score(MESSAGES, ""))).all()


def test_every_end_token_of_the_generation_settings_ends_a_reply(folders: dict[str, Path], tmp_path: Path) -> None:
    chat = load_chat(find(folders["llama"]))
    assert {chat.tokenizer.convert_ids_to_tokens(number) for number in chat.end_ids} == {END, STOP}
    assert chat.end_text == END  # what the template writes
    whole = LocalLM(folders["llama"], device="cpu", max_tokens=12)(messages=MESSAGES)[0]
    model, tokenizer = in_transformers(folders["llama"])
    given = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    third = int(model.generate(**given, max_new_tokens=3, min_new_tokens=3, do_sample=False)[0, -1])
    copy = Path(shutil.copytree(folders["llama"], tmp_path / "llama"))
    settings = json.loads((copy / "generation_config.json").read_text())
    ends = [*settings["eos_token_id"], third]
    (copy / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": ends}))
    cut = LocalLM(copy, device="cpu", max_tokens=12)(messages=MESSAGES)[0]
    assert whole.startswith(cut)
    assert len(cut) < len(whole)


def test_the_id_is_the_content_of_the_files_that_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    first = find(folders["llama"])
    copy = Path(shutil.copytree(folders["llama"], tmp_path / "llama"))
    (copy / "README.md").write_text("about it")
    (copy / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "/evil"}')
    assert find(copy).id == first.id == find(str(copy)).id
    assert LocalLM(copy, device="cpu", max_tokens=2).score(MESSAGES, "tea")  # reads none of the three
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": 0}))
    assert find(copy).id != first.id
    shutil.rmtree(copy)
    assert resolve(first.id).path == first.path


def test_folders_that_cannot_be_read_say_why(folders: dict[str, Path], tmp_path: Path) -> None:
    def changed(name: str) -> Path:
        return Path(shutil.copytree(folders["llama"], tmp_path / name))

    def refuses(folder: Path, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            LocalLM(folder)

    pickled = changed("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refuses(pickled, UnreadableModelError, r"pytorch_model\.bin.*refused")
    bare = changed("bare")
    (bare / "chat_template.jinja").unlink()
    refuses(bare, UnreadableModelError, "no chat template.*Instruct")
    incomplete = changed("incomplete")
    index = incomplete / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    refuses(incomplete, ModelNotFoundError, r"no file 'model-1\.safetensors'")
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    refuses(incomplete, UnreadableModelError, "outside its folder")
    quantized = changed("quantized")
    settings = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**settings, "quantization_config": {"quant_method": "gptq"}}))
    refuses(quantized, UnreadableModelError, "quantized.*gptq")
    (quantized / "config.json").write_text("{")
    refuses(quantized, UnreadableModelError, "not JSON")
    refuses(tmp_path / "nothing", ModelNotFoundError, "no local model")


def test_a_model_that_needs_its_own_code_is_refused_and_the_code_not_run(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["llama"], tmp_path / "own"))
    settings = json.loads((folder / "config.json").read_text())
    code = {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps({**settings, **code}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(Exception, match="without running code of the model"):
        LocalLM(folder, device="cpu").score(MESSAGES, "tea")
    assert not (tmp_path / "ran").exists()


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"head_dim": 32, "tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3_SCALING}),
        ("qwen2", {}),
        ("qwen3", {"rope_parameters": YARN}),
        ("qwen3", {"rope_parameters": {**YARN, "rope_type": "linear"}}),
    ],
)
def test_a_converted_folder_is_the_same_model(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Read back: every matrix up to its blocks' rounding, every setting of the rotation, and what the text becomes."""
    import torch

    from sirius_dspy.local.convert import convert
    from sirius_dspy.local.unquantized import read_gguf

    weights = find(write_model(tmp_path / "model", kind, **changes))
    converted = find(convert(weights, load_chat(weights), tmp_path / "tiny.gguf", "tiny"))
    ours, theirs = read_gguf(converted.path, torch.float32), in_transformers(weights.path)[0]
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=float(expected[name].abs().max()) / 200, rtol=0)
    ids = torch.tensor([load_chat(weights).encode(load_chat(weights).prompt(MESSAGES)) * 3])
    ours.load_state_dict(expected)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-3, rtol=1e-3)
    chat = load_chat(converted)
    assert chat.prompt(MESSAGES) == load_chat(weights).prompt(MESSAGES)
    assert [chat.encode(chat.prompt(MESSAGES)), chat.end_id, chat.context] == [
        load_chat(weights).encode(load_chat(weights).prompt(MESSAGES)),
        load_chat(weights).end_id,
        256,
    ]


def device_of(folder: Path) -> str:
    from sirius_dspy.local.serving import pool_key

    return pool_key(find(folder).id, "openvino").partition(":")[0]


def test_models_that_openvino_would_compute_wrongly_run_on_pytorch(folders: dict[str, Path], tmp_path: Path) -> None:
    from sirius_dspy.local.convert import convert

    assert [device_of(folders[kind]) for kind in ("llama", "qwen2", "qwen3")] == ["openvino"] * 3
    assert device_of(folders["gpt_neox"]) == "cpu"
    scaled = find(write_model(tmp_path / "scaled", "llama", rope_parameters=LLAMA3_SCALING))
    assert device_of(scaled.path) == "cpu"
    assert device_of(convert(scaled, load_chat(scaled), tmp_path / "llama3.gguf", "llama3")) == "cpu"
    yarn = find(write_model(tmp_path / "yarn", "qwen3", rope_parameters=YARN))
    assert device_of(yarn.path) == "cpu"
    assert device_of(convert(yarn, load_chat(yarn), tmp_path / "yarn.gguf", "yarn")) == "cpu"
    assert device_of(write_model(tmp_path / "biases", "llama", attention_bias=True)) == "cpu"
    neox = find(folders["gpt_neox"])
    with pytest.raises(UnreadableModelError, match="'gpt_neox'"):
        convert(neox, load_chat(neox), tmp_path / "neox.gguf", "neox")
    assert not (tmp_path / "neox.gguf").exists()


def test_a_gguf_file_with_scaled_rotation_has_the_numbers_of_its_model(on_torch: None, tmp_path: Path) -> None:
    from sirius_dspy.local.convert import convert

    scaled = find(write_model(tmp_path / "scaled", "llama", rope_parameters=LLAMA3_SCALING))
    plain = find(write_model(tmp_path / "plain", "llama"))
    file = convert(scaled, load_chat(scaled), tmp_path / "llama3.gguf", "llama3")
    right, wrong = (log_probs(weights.path, "the tea of Bob") for weights in (scaled, plain))
    given = LocalLM(file).score(MESSAGES, "the tea of Bob")
    assert given == pytest.approx(right, abs=0.3)
    assert given != pytest.approx(wrong, abs=0.3)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_openvino_scores_a_folder_as_transformers_does(folders: dict[str, Path], kind: str) -> None:
    pytest.importorskip("openvino_genai")
    lm = LocalLM(folders[kind], device="openvino", max_tokens=5)
    given = lm.score(MESSAGES, "the tea of Bob")
    assert given == pytest.approx(log_probs(folders[kind], "the tea of Bob"), abs=0.4)  # weights of 8 bits
    assert any(lm.model in key and key.startswith("openvino") for key in engines().list_loaded())
    assert isinstance(lm(messages=MESSAGES)[0], str)
