"""Models of the Hugging Face hub: what is downloaded, and what is said if it cannot be. The hub is a fake."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

huggingface_hub = pytest.importorskip("huggingface_hub")

from huggingface_hub import errors  # noqa: E402

from sirius_dspy import LocalLM  # noqa: E402
from sirius_dspy.errors import ModelNotFoundError, SettingsError, UnreadableModelError  # noqa: E402
from sirius_dspy.local.models import find  # noqa: E402
from tests.test_local_models import write_gguf  # noqa: E402

FOLDER = ["config.json", "tokenizer_config.json", "model-1-of-1.safetensors", "model.safetensors.index.json"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIRIUS_HOME", str(tmp_path / "home"))


class FakeHub:
    """A hub with some repositories, and the cache of earlier downloads."""

    def __init__(self, cache: Path, repositories: Mapping[str, list[str]]) -> None:
        self.cache, self.repositories = cache, repositories
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []

    def repo_exists(self, repo: str) -> bool:
        if self.error is not None:
            raise self.error
        return repo in self.repositories

    def list_repo_files(self, repo: str, revision: str | None = None) -> list[str]:
        if revision == "absent":
            raise refusal(errors.RevisionNotFoundError)
        if repo not in self.repositories:
            raise refusal(errors.RepositoryNotFoundError)
        return self.repositories[repo]

    def hf_hub_download(self, repo: str, file: str, revision: str | None = None) -> str:
        if file not in self.repositories.get(repo, ()):
            raise refusal(errors.EntryNotFoundError)
        return str(write_gguf(self.cache / repo / file))

    def snapshot_download(self, repo: str, **asked: Any) -> str:
        self.asked.append({"repo": repo, **asked})
        folder = self.cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "0123"
        if asked.get("local_files_only") and not folder.is_dir():
            raise errors.LocalEntryNotFoundError("not in the cache")
        return str(write_folder(folder))


def refusal(kind: type[Exception]) -> Exception:
    response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
    return kind("404", response=response) if kind is not errors.EntryNotFoundError else kind("404")


def write_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    ggufs = ["README.md", "tiny-q4_0.gguf", "tiny-q8_0.gguf"]
    repositories = {
        "owner/tiny-GGUF": ggufs,
        "owner/chat": [*FOLDER, "pytorch_model.bin", "modeling_evil.py"],
        "owner/pickled": ["config.json", "pytorch_model.bin"],
        "owner/data": ["README.md"],
        "owner/many": ["a.gguf", "b.gguf"],
    }
    fake = FakeHub(tmp_path / "cache", repositories)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(fake, name))
    return fake


def test_a_repository_with_safetensors_is_a_folder_without_code_and_pickles(hub: FakeHub) -> None:
    weights = find("owner/chat", "v2")
    assert weights.id.startswith("local/chat@")
    assert weights.path.name == "0123"
    (asked,) = hub.asked
    assert (asked["repo"], asked["revision"]) == ("owner/chat", "v2")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


def test_a_repository_with_gguf_files_is_its_q8_0_file(hub: FakeHub) -> None:
    assert find("owner/tiny").path.name == "tiny-q8_0.gguf"  # of its twin
    assert find("owner/tiny-GGUF/tiny-q4_0.gguf").path.name == "tiny-q4_0.gguf"
    with pytest.raises(ModelNotFoundError, match=r"2 GGUF files.*Name one"):
        find("owner/many")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("owner/absent", ModelNotFoundError, "no model 'owner/absent'.*hf auth login"),
        ("owner/tiny-GGUF/absent.gguf", ModelNotFoundError, "no model"),
        ("owner/pickled", UnreadableModelError, r"'pytorch_model\.bin'.*can run code"),
        ("owner/data", UnreadableModelError, "holds no language model"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub: FakeHub, model: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LocalLM(model)


def test_a_revision_that_does_not_exist_is_named(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'owner/chat' at the revision 'absent'.*`revision`"):
        LocalLM("owner/chat", revision="absent")
    with pytest.raises(SettingsError, match="no model of the Hugging Face hub"):
        LocalLM(write_folder(tmp_path / "mine"), revision="main")


def test_a_gated_model_says_how_to_get_it(hub: FakeHub) -> None:
    hub.error = refusal(errors.GatedRepoError)
    with pytest.raises(ModelNotFoundError, match=r"gated.*https://huggingface\.co/owner/chat.*hf auth login"):
        LocalLM("owner/chat")


def test_without_a_network_the_cache_serves(hub: FakeHub) -> None:
    hub.error = httpx.ConnectError("no route")
    with pytest.raises(ModelNotFoundError, match=r"cannot be reached.*no route"):
        LocalLM("owner/chat")
    hub.error = None
    online = LocalLM("owner/chat")
    hub.error = errors.OfflineModeIsEnabled("offline")
    assert LocalLM("owner/chat").model == online.model


def test_a_folder_on_this_machine_comes_before_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "owner" / "chat")
    assert find("owner/chat").path == tmp_path / "owner" / "chat"
    shutil.rmtree(tmp_path / "owner")
    assert find("owner/chat").path.parent.name == "snapshots"
