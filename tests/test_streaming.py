"""Text while it is generated: what is certain, from engines, and from the server over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from sirius_dspy.errors import RolloutError
from sirius_dspy.local.engine import Generation, GenerationOptions
from sirius_dspy.local.streaming import TextStream, cut_at_stop
from tests.serve_help import FakeBackend, serving
from tests.wait import wait_until

HELLO = [{"role": "user", "content": "Hello"}]


def of_bytes(ids):
    return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("Grüße, 世界 👩‍🚀!", ()),
        ("one two three", ("three",)),
        ("a STO b STOP c", ("STOP",)),
        ("aab", ("aaab", "ab")),
        ("ends in ST", ("STOP",)),
        ("abab", ("abc", "bb")),
    ],
)
def test_pieces_make_up_the_text_and_are_never_taken_back(text, stops):
    stream = TextStream(of_bytes, stops)
    whole = cut_at_stop(text, stops)
    for byte in text.encode():
        piece = stream.add([byte])
        assert "\ufffd" not in piece
        assert whole.startswith(stream.text)
        assert not any(stop in stream.text for stop in stops)
    begun = [stop[:size] for stop in stops for size in range(1, len(stop)) if whole.endswith(stop[:size])]
    assert stream.text == whole.removesuffix(max(begun, key=len, default=""))


def test_several_tokens_at_once_give_the_same_text():
    stream = TextStream(of_bytes, ("END",))
    assert stream.add(list("Ja, „ja“ E".encode())) == "Ja, „ja“ "
    assert stream.add(list(b"ND and more")) == ""


# The engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("torch")
    from tests.tiny_models import write_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIRIUS_HOME", str(tmp_path_factory.mktemp("home")))
        yield write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def engine(tiny):
    from sirius_dspy.local.chat import load_chat
    from sirius_dspy.local.models import find
    from sirius_dspy.local.transformers_engine import TransformersEngine

    weights = find(tiny)
    engine = TransformersEngine(weights, load_chat(weights), max_sequences=1)
    yield engine
    engine.close()


pytorch = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*gradient_checkpointing:FutureWarning")


@pytorch
def test_pytorch_streams_the_answer_that_it_gives_without_a_stream(engine):
    options = GenerationOptions(24, temperature=1.0, seed=3)
    whole = engine.generate("Who likes tea?", options)
    stop = whole.text[6:9]
    for asked in (options, GenerationOptions(24, temperature=1.0, seed=3, stop=(stop,))):
        pieces: list[str] = []
        answer = engine.generate("Who likes tea?", asked, pieces.append)
        assert answer == engine.generate("Who likes tea?", asked)
        assert "".join(pieces) == answer.text
    assert answer.text == whole.text[: whole.text.index(stop)]


@pytorch
def test_a_listener_that_leaves_frees_its_place(engine, monkeypatch):
    from sirius_dspy.local.running import RunningBatch

    advance, steps = RunningBatch.advance, []
    monkeypatch.setattr(RunningBatch, "advance", lambda *args: steps.append(1) or advance(*args))
    seen: list[str] = []

    def leave(text: str) -> None:
        seen.append(text)
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        engine.generate("Who likes tea?", GenerationOptions(200), leave)
    assert len(seen) == 1
    assert engine.generate("Ann", GenerationOptions(3)).completion_tokens == 3  # the only place of the batch
    assert len(steps) < 50  # of the 200 that were asked for


@pytorch
def test_a_broken_engine_ends_a_stream_with_its_error(engine, monkeypatch):
    from sirius_dspy.local.running import RunningBatch

    advance, steps = RunningBatch.advance, []

    def break_down(batch, joining):
        steps.append(1)
        if len(steps) > 3:
            raise RuntimeError("the cable came loose")
        advance(batch, joining)

    monkeypatch.setattr(RunningBatch, "advance", break_down)
    pieces: list[str] = []
    with pytest.raises(RolloutError, match="cable came loose"):
        engine.generate("Who likes tea?", GenerationOptions(20), pieces.append)
    assert len(pieces) == 3


@pytest.mark.local
@pytest.mark.timeout(300)
def test_the_embedded_model_streams_over_http(tmp_path):
    from sirius_dspy.local.serving import engines, pool_key
    from sirius_dspy.server.local import LocalBackend, load_models

    base = "smollm2-135m-instruct"
    models = load_models([base], None)
    question = [{"role": "user", "content": "Greet Zoë in three languages, with emoji."}]
    with serving(tmp_path, LocalBackend(models)) as client:
        ask = client.chat.completions.create
        for stop in (None, ["\n", " the"]):
            asked = {"model": base, "messages": question, "max_tokens": 24, "n": 2, "seed": 5, "stop": stop}
            whole, chunks = ask(**asked), list(ask(**asked, stream=True))
            assert texts(chunks) == [choice.message.content for choice in whole.choices]
            assert reasons(chunks) == [choice.finish_reason for choice in whole.choices]
        assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 2
        with engines().lend(pool_key(models[base].model, models[base].device)) as engine:
            stream = ask(model=base, messages=question, max_tokens=4000, temperature=0, stream=True)
            next(iter(stream))
            assert engine._live
            stream.close()
            wait_until(lambda: not engine._live)


# The server


class Stepwise(FakeBackend):
    """Gives one piece of text for each permission, and counts the answers that were left."""

    def __init__(self, pieces=("Grü", "ße", " Zoë"), error=None):
        super().__init__()
        self.pieces, self.error = pieces, error
        self.may_go, self.left = threading.Semaphore(0), threading.Semaphore(0)

    def complete(self, weights, messages, options, on_text=None):
        try:
            for piece in self.pieces:
                self.may_go.acquire()
                on_text(piece)
        except BaseException:
            self.left.release()
            raise
        if self.error:
            self.may_go.acquire()
            raise self.error
        return Generation("".join(self.pieces), 3, len(self.pieces), "stop")


def stream(client, **settings):
    return client.chat.completions.create(model="tiny", messages=HELLO, stream=True, **settings)


def texts(chunks):
    choices = [choice for chunk in chunks for choice in chunk.choices]
    numbers = sorted({choice.index for choice in choices})
    return ["".join(choice.delta.content or "" for choice in choices if choice.index == n) for n in numbers]


def reasons(chunks):
    choices = sorted((choice for chunk in chunks for choice in chunk.choices), key=lambda choice: choice.index)
    return [choice.finish_reason for choice in choices if choice.finish_reason]


def test_a_piece_arrives_before_the_next_one_is_generated(tmp_path):
    backend = Stepwise()
    with serving(tmp_path, backend) as client:
        backend.may_go.release()
        chunks = stream(client, stream_options={"include_usage": True})
        assert next(chunks).choices[0].delta.role == "assistant"
        for piece in backend.pieces:
            assert next(chunks).choices[0].delta.content == piece
            backend.may_go.release()
        assert next(chunks).choices[0].finish_reason == "stop"
        last = next(chunks)
        assert (last.choices, last.usage.completion_tokens, last.usage.total_tokens) == ([], 3, 6)
        assert list(chunks) == []


def test_several_answers_are_mixed_by_their_index(tmp_path):
    backend = Stepwise()
    backend.may_go.release(9)
    with serving(tmp_path, backend) as client:
        chunks = list(stream(client, n=3))
    assert texts(chunks) == ["Grüße Zoë"] * 3
    assert reasons(chunks) == ["stop"] * 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_client_that_goes_away_ends_all_its_answers(tmp_path):
    backend = Stepwise(pieces=["word"] * 100_000)
    with serving(tmp_path, backend) as client:
        backend.may_go.release(2)
        chunks = stream(client, n=2)
        next(chunks)
        chunks.close()
        for _ in range(2):
            wait_until(lambda: backend.may_go.release() or backend.left.acquire(blocking=False))
        assert client.models.list().data


@pytest.mark.parametrize(
    ("error", "told"),
    [(RolloutError("The engine has failed."), "The engine has failed"), (KeyError("secret"), "Its log says why")],
)
def test_an_error_in_the_middle_is_an_event(tmp_path, error, told):
    backend = Stepwise(error=error)
    backend.may_go.release(3)
    with serving(tmp_path, backend) as client:
        chunks = stream(client)
        assert [next(chunks).choices[0].delta.content for _ in range(4)] == ["", *backend.pieces]
        backend.may_go.release()
        with pytest.raises(openai.APIError, match=told) as caught:
            next(chunks)
    assert "secret" not in str(caught.value)


def test_an_error_before_the_first_token_is_an_answer_of_its_own(tmp_path):
    backend = Stepwise(pieces=(), error=RolloutError("The engine has failed."))
    backend.may_go.release()
    with serving(tmp_path, backend) as client, pytest.raises(openai.InternalServerError, match="engine has failed"):
        stream(client)
