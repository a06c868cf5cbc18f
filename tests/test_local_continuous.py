"""Continuous batching in the Transformers engine, with tiny random models."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

for package in ("torch", "transformers", "peft"):
    pytest.importorskip(package)

import torch  # noqa: E402

from sirius_dspy.errors import PromptTooLongError, RolloutError  # noqa: E402
from sirius_dspy.local.chat import load_chat  # noqa: E402
from sirius_dspy.local.engine import Generation, GenerationOptions  # noqa: E402
from sirius_dspy.local.models import find  # noqa: E402
from sirius_dspy.local.running import RunningBatch  # noqa: E402
from sirius_dspy.local.transformers_engine import TransformersEngine  # noqa: E402
from tests.tiny_models import write_model  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # swig and gguf, at import
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

KINDS = ("llama", "qwen2", "gpt_neox", "mistral")
QUESTIONS = [
    ("Who likes tea?", "the name of the user", "x", "Ann and Bob and Cid of the tea")[n % 4] for n in range(10)
]
REQUESTS = [(f"{question} {number}", 3 + 7 * (number % 4)) for number, question in enumerate(QUESTIONS)]
"""Prompts of several lengths, and how many tokens to write."""


@pytest.fixture(scope="module", autouse=True)
def in_float32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("SIRIUS_HOME", str(tmp_path_factory.mktemp("home")))
    patch.setattr("sirius_dspy.local.train.fast_precision", lambda: torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for models this small, more only wait for each other
    yield
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {kind: write_model(place / kind, kind) for kind in KINDS}


@pytest.fixture
def engine(folders: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[TransformersEngine]:
    weights = find(folders[getattr(request, "param", "llama")])
    engine = TransformersEngine(weights, load_chat(weights), max_sequences=4)
    yield engine
    engine.close()


def ask_all(engine: TransformersEngine, **options: Any) -> list[Generation]:
    def ask(number: int) -> Generation:
        prompt, max_tokens = REQUESTS[number]
        return engine.generate(prompt, GenerationOptions(max_tokens, seed=number, **options))

    with ThreadPoolExecutor(len(REQUESTS)) as threads:
        return list(threads.map(ask, range(len(REQUESTS))))


def ask_each(engine: TransformersEngine, **options: Any) -> list[Generation]:
    return [
        engine.generate(prompt, GenerationOptions(max_tokens, seed=number, **options))
        for number, (prompt, max_tokens) in enumerate(REQUESTS)
    ]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step left in the batch."""
    left: list[int] = []
    advance = RunningBatch.advance

    def watch(batch: RunningBatch, joining: Any) -> None:
        advance(batch, joining)
        left.append(len(batch.rows))

    monkeypatch.setattr(RunningBatch, "advance", watch)
    return left


@pytest.mark.parametrize("engine", KINDS, indirect=True)
def test_a_request_gets_the_same_text_alone_and_among_others(engine: TransformersEngine, sizes: list[int]) -> None:
    together = ask_all(engine)
    assert max(sizes) > 2
    assert together == ask_each(engine)
    assert [len(generation.text) > 0 for generation in together] == [True] * len(REQUESTS)
    ids = torch.tensor([engine.chat.encode(REQUESTS[3][0])])
    written = engine._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    assert together[3].text == engine.chat.decode(written[0, ids.shape[1] :].tolist())


def test_a_model_whose_rows_cannot_join_takes_batches_one_after_another(
    engine: TransformersEngine, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask_each(engine)
    engine._running = None
    monkeypatch.setattr("sirius_dspy.local.running.can_combine", lambda config: False)
    sizes.clear()
    assert ask_all(engine) == expected
    assert set(sizes) <= {0, 1, 2, 3, 4}
    assert all(after in (before, 0) for before, after in itertools.pairwise(sizes) if before)  # none joins or leaves


def test_samples_depend_on_their_own_seed_alone(engine: TransformersEngine) -> None:
    options = {"temperature": 1.5, "top_p": 0.9}
    together = ask_all(engine, **options)
    assert together == ask_each(engine, **options)
    prompt = REQUESTS[3][0]
    other = engine.generate(prompt, GenerationOptions(REQUESTS[3][1], seed=77, **options))
    assert other.text != together[3].text


def test_requests_join_and_leave_while_another_one_runs(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    started, go_on = threading.Event(), threading.Event()
    advance = RunningBatch.advance

    def watch(batch: RunningBatch, joining: Any) -> None:
        advance(batch, joining)
        sizes.append(len(batch.rows))
        started.set()
        go_on.wait(30)

    monkeypatch.setattr(RunningBatch, "advance", watch)
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(engine.generate, "Who likes tea?", GenerationOptions(20))
        assert started.wait(30)
        short = threads.submit(engine.generate, "Ann", GenerationOptions(5))
        while not engine._inbox:
            threading.Event().wait(0.001)
        go_on.set()
        assert short.result(30).completion_tokens == 5
        assert long.result(30).completion_tokens == 20
    engine.close()  # waits for the last step
    assert len(sizes) == 20  # the short one took no steps of its own
    assert (sizes[0], max(sizes), sizes[-2:]) == (1, 2, [1, 0])


def test_a_stop_string_ends_its_own_row_alone(engine: TransformersEngine) -> None:
    whole = ask_each(engine)[3].text
    stop = whole[4:6]
    with ThreadPoolExecutor(2) as threads:
        cut = threads.submit(engine.generate, REQUESTS[3][0], GenerationOptions(24, stop=(stop,)))
        uncut = threads.submit(engine.generate, REQUESTS[3][0], GenerationOptions(24))
        assert cut.result().text == whole[: whole.index(stop)]
        assert cut.result().finish_reason == "stop"
        assert uncut.result().text == whole


def test_a_prompt_over_the_context_fails_alone_and_closing_ends_the_rest(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PromptTooLongError, match="reads at most 256"):
        engine.generate("tea, " * 256, GenerationOptions())
    started, go_on = threading.Event(), threading.Event()

    def wait(batch: RunningBatch, joining: Any) -> None:
        started.set()
        go_on.wait(30)

    monkeypatch.setattr(RunningBatch, "advance", wait)
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(engine.generate, "Ann", GenerationOptions())
        assert started.wait(30)
        closing = threads.submit(engine.close)
        go_on.set()
        with pytest.raises(RolloutError, match="was closed"):
            answer.result(30)
        closing.result(30)


def limit_rows(monkeypatch: pytest.MonkeyPatch, engine: TransformersEngine, most: int) -> None:
    """Let the model run out of memory above so many rows, after some layers have kept keys and values already."""
    layer = engine._model.model.layers[-1]
    forward = layer.forward

    def limited(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(states) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(states, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", limited)


def test_a_batch_that_does_not_fit_into_the_memory_is_halved(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ask_each(engine)
    limit_rows(monkeypatch, engine, 2)
    assert ask_all(engine) == expected
    assert engine.max_sequences <= 2
    assert "do not fit into the memory of cpu" in caplog.text
    limit_rows(monkeypatch, engine, 0)
    with pytest.raises(RolloutError, match="does not fit into the memory of cpu, even alone"):
        engine.generate("Ann", GenerationOptions())
    assert engine.failure is None


def test_an_operation_that_mps_lacks_moves_the_engine_to_the_cpu(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = ask_each(engine)
    forward = engine._model.forward

    @functools.wraps(forward)
    def lacking(**inputs: Any) -> Any:
        if engine.device == "mps":
            raise NotImplementedError("The operator 'aten::new' is not implemented for the MPS device")
        return forward(**inputs)

    monkeypatch.setattr(engine._model, "forward", lacking)
    engine.device = "mps"
    with ThreadPoolExecutor(2) as threads:
        score = threads.submit(engine.score, "Who likes tea?", "Ann")
        assert ask_all(engine) == expected
        assert score.result(30) == engine.score("Who likes tea?", "Ann")
    assert engine.device == "cpu"
    assert caplog.text.count("missing on MPS") == 1
