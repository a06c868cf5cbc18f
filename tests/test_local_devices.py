"""Devices by name, and training on several GPUs, which only seem to be there."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for package in ("torch", "transformers", "peft"):
    pytest.importorskip(package)

from sirius_dspy import LocalLM  # noqa: E402
from sirius_dspy.errors import SettingsError, TrainingError  # noqa: E402
from sirius_dspy.local import children, devices, provider, serving  # noqa: E402
from sirius_dspy.local.side_by_side import SideBySide, deal  # noqa: E402
from tests.tiny_models import write_model  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # swig and gguf, at import
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    patch.setenv("SIRIUS_HOME", str(tmp_path_factory.mktemp("home")))
    yield write_model(tmp_path_factory.mktemp("models") / "llama", "llama")
    patch.undo()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    monkeypatch.setattr(devices, "free_gpu_memory", lambda number: 64 << 30)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[int | None, int]]:
    """What training processes got: their GPU, and how many agents. They write the base again."""
    seen: list[tuple[int | None, int]] = []

    def run_job(job: Any, *, stop: Any, hooks: Any, gpu: int | None = None) -> dict[str, Any]:
        seen.append((gpu, len(job.tasks)))
        for task, hook in zip(job.tasks, hooks, strict=True):
            if any(row.completion == row.prompt for row in task.rows):
                raise TrainingError("no memory")
            shutil.copytree(folder, task.folder, dirs_exist_ok=True)
            if hook is not None:
                hook(1, 1, 0.5)
        return {"results": [{"losses": [0.5]} for _ in job.tasks]}

    monkeypatch.setattr(provider, "run_job", run_job)
    return seen


def train(lm: LocalLM, target: Path, agents: int = 2, on_progress: Any = None) -> list[str]:
    rows = [
        [
            {
                "messages": [
                    {"role": "user", "content": f"{agent} {'long' * agent}"},
                    {"role": "assistant", "content": "a"},
                ]
            }
        ]
        for agent in range(agents)
    ]
    settings = [{"output_dir": target / str(agent), "on_progress": on_progress} for agent in range(agents)]
    ids: list[str] = lm.provider.finetune_all(lm.model, rows, settings)
    return ids


def test_agents_are_trained_side_by_side_on_several_gpus(
    folder: Path, tmp_path: Path, two_gpus: None, jobs: list[Any]
) -> None:
    steps: list[threading.Thread] = []
    ids = train(LocalLM(folder), tmp_path, 3, lambda *_: steps.append(threading.current_thread()))
    assert sorted(jobs) == [(0, 1), (1, 2)]
    assert len(ids) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert steps == [threading.current_thread()] * 3  # a tracker writes from the thread of the compile only


def test_one_gpu_trains_all_agents_in_one_pass(
    folder: Path, tmp_path: Path, jobs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(LocalLM(folder), tmp_path / "none")
    monkeypatch.setattr(devices, "count_gpus", lambda: 1)
    train(LocalLM(folder), tmp_path / "one")
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    train(LocalLM(folder, device="cuda:1"), tmp_path / "second")
    train(LocalLM(folder, device="cpu"), tmp_path / "cpu")
    assert jobs == [(None, 2), (None, 2), (1, 2), (None, 2)]


def test_a_gpu_that_is_not_there_is_an_error_before_any_work(folder: Path, tmp_path: Path, two_gpus: None) -> None:
    lm = LocalLM(folder, device="cuda:2")
    for act in (lm.provider.check, lm.launch, lambda: train(lm, tmp_path)):
        with pytest.raises(SettingsError, match=r"'cuda:2', but PyTorch finds 2 GPUs"):
            act()
    for wrong in ("cuda:", "cuda:one", "gpu", 1):
        with pytest.raises(SettingsError, match="'cuda:1' or another number"):
            LocalLM(folder, device=wrong)  # type: ignore[arg-type]


def test_an_engine_is_loaded_on_the_gpu_of_its_lm(
    folder: Path, two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str]] = []

    class Engine:
        failure = None

        def __init__(self, weights: Any, chat: Any, *, device: str) -> None:
            made.append((weights.id, device))

        def close(self) -> None:
            pass

    monkeypatch.setattr(serving, "TransformersEngine", Engine)
    lms = [LocalLM(folder, device=device) for device in ("cuda:0", "cuda:1")]
    for lm in lms:
        lm.launch()
    for lm in lms:
        lm.kill()
    assert made == [(lms[0].model, "cuda:0"), (lms[0].model, "cuda:1")]


def test_a_training_process_sees_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert children.child_environment(1)["CUDA_VISIBLE_DEVICES"] == "5"
    assert children.child_environment()["CUDA_VISIBLE_DEVICES"] == "2,5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert children.child_environment(1)["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_failure_waits_for_the_others_and_an_interrupt_stops_them() -> None:
    stop, done = threading.Event(), threading.Event()

    def fail() -> None:
        raise TrainingError("no memory")

    with pytest.raises(TrainingError, match="no memory"):
        SideBySide(stop).run([fail, done.set])
    assert done.is_set()
    assert not stop.is_set()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    together = SideBySide(stop)
    hook = together.relay(interrupt)
    assert hook is not None

    def work() -> None:
        hook(1, 2, 0.5)
        assert stop.wait(30)

    with pytest.raises(KeyboardInterrupt):
        together.run([work])
    assert stop.is_set()


def test_rows_are_dealt_evenly() -> None:
    assert deal([1, 9, 2, 8, 3], lambda size: size, 2) == [[9, 2, 1], [8, 3]]
    assert deal([4], lambda size: size, 3) == [[4]]
