"""Training rows, the loss, the batches and the merge, each on values small enough to check by hand."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from sirius_dspy.errors import MissingDependencyError, TrainingError
from sirius_dspy.local import lora
from sirius_dspy.local.chat import Chat
from sirius_dspy.local.children import run_job
from sirius_dspy.local.lora import LoraOptions, TokenRow, TrainingJob, TrainingTask, drop_long_rows, to_tokens
from sirius_dspy.local.provider import LocalProvider, TrainingSettings

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # of swig and gguf, at import


class Letters:
    """A chat whose template is `<role>text` and whose tokens are characters, 0 ending a turn."""

    end_id = 0
    context = 100

    def prompt(self, messages: list[dict[str, str]], offered: object = ()) -> str:
        return "".join(f"<{message['role'][0]}>{message['content']}" for message in messages) + "<a>"

    def reply_text(self, messages: list[dict[str, str]], reply: dict[str, str], offered: object = ()) -> str:
        return reply["content"]

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_completion(self, text: str) -> list[int]:
        return [*self.encode(text), self.end_id]


CHAT = cast(Chat, Letters())
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def test_a_row_is_the_inference_prompt_then_the_reply_then_the_end_of_the_turn() -> None:
    row = to_tokens(CHAT, {"messages": MESSAGES})
    assert "".join(map(chr, row.prompt)) == CHAT.prompt(MESSAGES[:-1]) == "<u>hi<a>"
    assert row.completion == (ord("y"), ord("o"), 0)
    assert len(row) == 11


@pytest.mark.parametrize("messages", [[], MESSAGES[:1], MESSAGES[1:], [*MESSAGES, MESSAGES[0]]])
def test_a_row_without_a_reply_is_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(ValueError, match="expected a prompt and, last, one 'assistant' message"):
        to_tokens(CHAT, {"messages": messages})


def test_long_rows_are_left_out_and_counted_never_cut(caplog: pytest.LogCaptureFixture) -> None:
    short, long = to_tokens(CHAT, {"messages": MESSAGES}), TokenRow((1,) * 50, (2, 0))
    assert drop_long_rows([short, long], 20) == [short]
    assert "1 of 2 training rows" in caplog.text
    with pytest.raises(TrainingError, match=r"All 1 .*the shortest has 52"):
        drop_long_rows([long], 20)
    with pytest.raises(TrainingError, match="no training rows"):
        drop_long_rows([], 20)


def test_unknown_or_impossible_settings_are_refused_before_training() -> None:
    settings = TrainingSettings.read({"epochs": 7, "seed": 3, "output_dir": "x"}, LoraOptions(rank=4))
    assert settings.options == LoraOptions(rank=4, epochs=7, seed=3)
    assert settings.output_dir == Path("x").absolute()
    with pytest.raises(TypeError, match="Unknown training settings: 'epoch'"):
        TrainingSettings.read({"epoch": 7}, LoraOptions())
    for wrong in ({"rank": 0}, {"learning_rate": -1.0}, {"warmup": 1.0}, {"learning_rate": float("nan")}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            TrainingSettings.read(wrong, LoraOptions())


def test_a_missing_package_is_said_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    LocalProvider().check()
    monkeypatch.setattr(lora, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(MissingDependencyError, match=r"no_such_package.*pip install 'sirius-dspy\[local\]'"):
        LocalProvider().check()


def test_a_job_survives_the_way_to_the_child(tmp_path: Path) -> None:
    row = to_tokens(CHAT, {"messages": MESSAGES, "weight": 0.5})
    tasks = [TrainingTask([row], LoraOptions(seed=seed), tmp_path) for seed in (4, 5)]
    job = TrainingJob(tmp_path / "a.gguf", None, tmp_path, tasks, "n")
    assert TrainingJob.from_json(job.to_json()) == job
    kept = dataclasses.replace(job, training_copy=tmp_path / "copy")
    assert TrainingJob.from_json(kept.to_json()) == kept


def test_a_child_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    job = TrainingJob(tmp_path / "no.gguf", None, tmp_path, [], "n")
    with pytest.raises(TrainingError, match=r"(?s)exit code 1.*Error"):
        run_job(job, stop=threading.Event())


def test_batches_hold_rows_of_similar_length_in_a_new_order_each_epoch() -> None:
    from sirius_dspy.local.learning import LengthBatches

    lengths = [5, 50, 6, 51, 7, 52, 8, 53, 9]
    sampler = LengthBatches(lengths, 2, seed=1)
    epochs = [[row for batch in sampler for row in batch] for _ in range(6)]
    assert len(sampler) == 5
    for epoch in epochs:
        assert sorted(epoch) == list(range(9))
        widths = [abs(lengths[a] - lengths[b]) for a, b in zip(epoch[:8:2], epoch[1:8:2], strict=True)]
        assert sum(width > 5 for width in widths) <= 1
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [row for batch in LengthBatches(lengths, 2, seed=1) for row in batch] == epochs[0]
    assert [sorted(batch) for batch in LengthBatches([3, 1], 16, seed=0)] == [[0, 1]]


def write_base(path: Path, architecture: str, seed: int = 0) -> dict[str, Any]:
    """A one-layer GGUF with a query and a down projection; its tensors as written."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(seed)
    tensors = {
        "token_embd.weight": rng.normal(size=(8, 32)).astype(np.float32),
        "blk.0.attn_q.weight": rng.normal(size=(32, 32)).astype(np.float32),
        "blk.0.ffn_down.weight": rng.normal(size=(32, 64)).astype(np.float32),
        "blk.0.attn_norm.weight": rng.normal(size=32).astype(np.float32),
    }
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("base")
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list(["a", "é"])
    writer.add_array("general.languages", ["en"])
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def write_adapter(folder: Path, seed: int = 1) -> dict[str, Any]:
    """A rank-2 adapter of the two projections; module to its delta, rows in Hugging Face's order."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    shapes = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (32, 64)}
    factors, deltas = {}, {}
    for module, (height, width) in shapes.items():
        narrow, wide = rng.normal(size=(2, width)).astype(np.float32), rng.normal(size=(height, 2)).astype(np.float32)
        prefix = f"base_model.model.model.layers.0.{module}"
        factors[f"{prefix}.lora_A.weight"], factors[f"{prefix}.lora_B.weight"] = narrow, wide
        deltas[module] = 2.0 * wide @ narrow
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 2}), encoding="utf-8")
    return deltas


def read_tensors(path: Path) -> dict[str, Any]:
    import gguf

    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            list(reversed(tensor.shape.tolist()))
        )
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize(("architecture", "permuted"), [("llama", True), ("qwen2", False), ("qwen3", False)])
def test_merge_adds_the_adapter_where_the_file_keeps_each_row(
    tmp_path: Path, architecture: str, permuted: bool
) -> None:
    import numpy as np

    from sirius_dspy.local.gguf_header import read_header
    from sirius_dspy.local.merge import merge

    base = write_base(tmp_path / "base.gguf", architecture)
    deltas = write_adapter(tmp_path / "adapter")
    assert merge(tmp_path / "base.gguf", {tmp_path / "adapter": tmp_path / "model.gguf"}, name="new") == [2]
    merged = read_tensors(tmp_path / "model.gguf")
    rows = list(range(32))
    if permuted:  # head of 8 rows: 0 4 1 5 2 6 3 7
        rows = [8 * head + half * 4 + pair for head in range(4) for pair in range(4) for half in range(2)]
    expected_q = base["blk.0.attn_q.weight"] + deltas["self_attn.q_proj"][rows]
    np.testing.assert_allclose(merged["blk.0.attn_q.weight"], expected_q, atol=0.1)  # half a step of Q8_0
    expected_down = base["blk.0.ffn_down.weight"] + deltas["mlp.down_proj"]
    np.testing.assert_allclose(merged["blk.0.ffn_down.weight"], expected_down, atol=0.1)
    np.testing.assert_allclose(merged["token_embd.weight"], base["token_embd.weight"], atol=0.02)
    np.testing.assert_array_equal(merged["blk.0.attn_norm.weight"], base["blk.0.attn_norm.weight"])
    assert read_header(tmp_path / "model.gguf")["general.name"] == "new"
    assert sorted(path.name for path in tmp_path.glob("*.gguf*")) == ["base.gguf", "model.gguf"]


def test_merge_reads_a_base_again_that_has_changed(tmp_path: Path) -> None:
    import numpy as np

    from sirius_dspy.local.merge import merge

    first = write_base(tmp_path / "base.gguf", "llama")
    write_adapter(tmp_path / "adapter")
    merge(tmp_path / "base.gguf", {tmp_path / "adapter": tmp_path / "model.gguf"}, name="new")
    (tmp_path / "base.gguf").unlink()
    second = write_base(tmp_path / "base.gguf", "llama", seed=7)
    merge(tmp_path / "base.gguf", {tmp_path / "adapter": tmp_path / "model.gguf"}, name="new")
    embedding = read_tensors(tmp_path / "model.gguf")["token_embd.weight"]
    assert not np.allclose(first["token_embd.weight"], second["token_embd.weight"], atol=0.1)
    np.testing.assert_allclose(embedding, second["token_embd.weight"], atol=0.02)


def test_merge_writes_each_of_several_adapters(tmp_path: Path) -> None:
    import numpy as np

    from sirius_dspy.local.merge import merge

    write_base(tmp_path / "base.gguf", "llama")
    targets = {}
    for number in (1, 2):
        write_adapter(tmp_path / f"adapter{number}", seed=number)
        targets[tmp_path / f"adapter{number}"] = tmp_path / f"model{number}.gguf"
    assert merge(tmp_path / "base.gguf", targets, name="new") == [2, 2]
    for adapter, target in targets.items():
        merge(tmp_path / "base.gguf", {adapter: tmp_path / "alone.gguf"}, name="new")
        together, alone = read_tensors(target), read_tensors(tmp_path / "alone.gguf")
        assert together.keys() == alone.keys()
        for name in alone:
            np.testing.assert_array_equal(together[name], alone[name])


def test_merge_copies_the_metadata(tmp_path: Path) -> None:
    import gguf

    from sirius_dspy.local.merge import merge

    write_base(tmp_path / "base.gguf", "llama")
    write_adapter(tmp_path / "adapter")
    merge(tmp_path / "base.gguf", {tmp_path / "adapter": tmp_path / "model.gguf"}, name="new")
    before, after = (gguf.GGUFReader(tmp_path / name).fields for name in ("base.gguf", "model.gguf"))
    for key in ("tokenizer.ggml.tokens", "general.languages", "llama.attention.head_count"):
        assert before[key].contents() == after[key].contents()


def test_merge_refuses_what_it_would_get_wrong(tmp_path: Path) -> None:
    from sirius_dspy.local.merge import merge

    write_base(tmp_path / "gemma.gguf", "gemma")
    write_adapter(tmp_path / "adapter")
    with pytest.raises(TrainingError, match=r"'gemma'; expected one of llama, qwen2, qwen3"):
        merge(tmp_path / "gemma.gguf", {tmp_path / "adapter": tmp_path / "model.gguf"}, name="new")
    write_base(tmp_path / "base.gguf", "llama")
    config = tmp_path / "adapter" / "adapter_model.safetensors"
    import numpy as np
    from safetensors.numpy import save_file

    factor = np.zeros((2, 32), dtype=np.float32)
    prefix = "base_model.model.model.layers.7.self_attn.v_proj"
    save_file({f"{prefix}.lora_A.weight": factor, f"{prefix}.lora_B.weight": factor.T.copy()}, config)
    with pytest.raises(TrainingError, match=r"blk\.7\.attn_v\.weight"):
        merge(tmp_path / "base.gguf", {tmp_path / "adapter": tmp_path / "model.gguf"}, name="new")
    assert not (tmp_path / "model.gguf").exists()
