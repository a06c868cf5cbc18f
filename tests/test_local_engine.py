"""The halves that engines share, with engines small enough to see through: batching, failure, the pool."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, cast

import pytest

from sirius_dspy.errors import PromptTooLongError, RolloutError
from sirius_dspy.local import transformers_engine
from sirius_dspy.local.batching import BatchingEngine, Call, Written
from sirius_dspy.local.chat import Chat
from sirius_dspy.local.engine import Engine, GenerationOptions
from sirius_dspy.local.pool import EnginePool
from sirius_dspy.local.streaming import cut_at_stop
from tests.wait import wait_until


class Letters:
    """A tokenizer whose tokens are characters."""

    context = 10

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class Echo(BatchingEngine):
    """Writes the prompt again; breaks at a prompt with a '!'."""

    def __init__(self) -> None:
        super().__init__(cast(Chat, Letters()))
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.released = False
        self._start()

    @property
    def num_waiting(self) -> int:
        """Calls that are in no batch yet."""
        return len(self._inbox)

    @property
    def num_live(self) -> int:
        """Calls of the batch at work."""
        return len(self._live)

    def _advance(self, admitted: list[Call]) -> None:
        self._live += admitted
        self.gate.wait(60)
        self.batches.append(len(self._live))
        for call in self._live:
            if ord("!") in call.ids:
                raise RuntimeError("out of memory")
            call.done.set_result(Written(call.ids[: call.max_tokens], "stop"))
        self._live = []

    def _release(self) -> None:
        self.released = True


def schedulers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith("-scheduler")]


def test_many_threads_share_batches_and_each_gets_its_own_answer() -> None:
    engine = Echo()
    engine.gate.clear()
    with ThreadPoolExecutor(32) as threads:
        answers = [threads.submit(engine.generate, f"n{number}", GenerationOptions()) for number in range(32)]
        wait_until(lambda: engine.num_live + engine.num_waiting == 32)
        engine.gate.set()
        assert [answer.result().text for answer in answers] == [f"n{number}" for number in range(32)]
    assert len(engine.batches) <= 2  # those that came while the first batch was at work went into one
    engine.close()
    assert engine.released
    assert not schedulers()


def test_counts_stop_strings_and_limits() -> None:
    engine = Echo()
    generation = engine.generate("abcdef", GenerationOptions(max_tokens=3))
    assert generation == ("abc", 6, 3, "stop")
    assert engine.generate("abcdef", GenerationOptions(stop=("ef", "cd"))).text == "ab"
    assert cut_at_stop("abc", ("x",)) == "abc"
    assert engine.generate("12345678", GenerationOptions()).completion_tokens == 2  # the context ends there
    engine.close()


def test_a_prompt_over_the_context_fails_alone() -> None:
    engine = Echo()
    with pytest.raises(PromptTooLongError, match="12 tokens; the model reads at most 10"):
        engine.generate("x" * 12, GenerationOptions())
    with pytest.raises(ValueError, match="empty"):
        engine.generate("", GenerationOptions())
    assert engine.generate("ok", GenerationOptions()).text == "ok"
    engine.close()


def test_an_engine_that_breaks_tells_every_waiting_caller_and_stays_broken() -> None:
    engine = Echo()
    engine.gate.clear()
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(engine.generate, text, GenerationOptions()) for text in ("!", "a", "b", "c")]
        wait_until(lambda: engine.num_live + engine.num_waiting == 4)
        engine.gate.set()
        for answer in answers:
            with pytest.raises(RolloutError, match="out of memory"):
                answer.result(timeout=10)
    with pytest.raises(RolloutError, match="out of memory"):
        engine.generate("later", GenerationOptions())
    assert engine.released
    wait_until(lambda: not schedulers())
    engine.close()


@pytest.mark.local
def test_a_model_that_breaks_while_it_scores_tells_every_waiting_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    gate = threading.Event()

    class Broken(torch.nn.Module):
        device, config = "cpu", pytest.importorskip("transformers").LlamaConfig()

        def forward(self, **inputs: Any) -> Any:
            gate.wait(60)
            raise RuntimeError("out of memory")

    class Replies(Letters):
        end_id = 0

        def encode_completion(self, text: str) -> list[int]:
            return self.encode(text)

    monkeypatch.setattr(transformers_engine, "_load", lambda weights, adapter: Broken())
    engine = transformers_engine.TransformersEngine(cast(Any, None), cast(Chat, Replies()))
    with ThreadPoolExecutor(8) as threads:
        scores = [threads.submit(engine.score, "ask", "reply"[:size]) for size in (1, 2, 5)]
        answer = threads.submit(engine.generate, "ask", GenerationOptions())
        gate.set()
        for waiting in (*scores, answer):
            with pytest.raises(RolloutError, match="out of memory"):
                waiting.result(timeout=30)
    engine.close()


def test_closing_ends_waiting_calls_with_an_error_and_leaves_no_thread() -> None:
    engine = Echo()
    engine.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(engine.generate, "a", GenerationOptions())
        wait_until(lambda: engine.num_live == 1)
        second = threads.submit(engine.generate, "b", GenerationOptions())
        wait_until(lambda: engine.num_waiting == 1)
        closing = threading.Thread(target=engine.close)
        closing.start()
        wait_until(lambda: engine.failure is not None)
        engine.gate.set()
        assert first.result(timeout=10).text == "a"
        with pytest.raises(RolloutError, match="closed"):
            second.result(timeout=10)
        closing.join(timeout=10)
    engine.close()  # again does nothing
    assert not schedulers()


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": 0}]
)
def test_options_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        GenerationOptions(**wrong)


def test_seeds_repeat_and_their_absence_does_not() -> None:
    assert GenerationOptions(seed=2**40 + 5).rng_seed == 5
    assert len({GenerationOptions().rng_seed for _ in range(20)}) > 15


class Weights:
    """An engine for the pool: remembers what happened to it."""

    failure: Exception | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = 0
        self.busy = 0

    def close(self) -> None:
        assert not self.busy, f"{self.name} was closed while answering"
        self.closed += 1


class Depot:
    """A pool over `Weights` of size 1, with a log of loads; `others` is what other processes use of 10 bytes."""

    def __init__(self, limit: int) -> None:
        self.loads: list[str] = []
        self.made: list[Weights] = []
        self.others = 0
        self.pool = EnginePool(self.load, lambda _: 1, limit, self.count_free)

    def count_free(self) -> int:
        return 10 - self.others - sum(not weights.closed for weights in self.made)

    def load(self, name: str) -> Engine:
        self.loads.append(name)
        if name == "broken":
            raise RolloutError("cannot read it")
        self.made.append(Weights(name))
        return cast(Engine, self.made[-1])

    def use(self, name: str) -> None:
        with self.pool.lend(name):
            pass


def test_least_recently_used_weights_make_room() -> None:
    depot = Depot(limit=2)
    for name in "abacab":
        depot.use(name)
    assert depot.loads == ["a", "b", "c", "b"]
    assert depot.pool.list_loaded() == ("a", "b")
    assert [weights.closed for weights in depot.made] == [0, 1, 1, 0]


def test_other_processes_that_use_the_memory_make_the_pool_smaller() -> None:
    depot = Depot(limit=5)
    for name in "abc":
        depot.use(name)
    depot.others = 7
    depot.use("d")
    assert depot.pool.list_loaded() == ("b", "c", "d")
    depot.others = 10
    depot.use("e")
    assert depot.pool.list_loaded() == ("e",)  # one engine is always allowed


def test_weights_in_use_are_never_unloaded_and_the_hungry_wait() -> None:
    depot = Depot(limit=1)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with depot.pool.lend("a") as engine:
            weights = cast(Weights, engine)
            weights.busy = 1  # closing them now fails the call that wants room
            entered.set()
            leave.wait(20)
            weights.busy = 0

    with ThreadPoolExecutor(2) as threads:
        holder = threads.submit(hold)
        assert entered.wait(20)
        other = threads.submit(depot.use, "b")
        wait([other], timeout=0.2)  # a pool that did not wait would be done
        assert not other.done()
        assert depot.loads == ["a"]
        leave.set()
        other.result(timeout=10)
        holder.result(timeout=10)
    assert depot.pool.list_loaded() == ("b",)


def test_a_stream_of_calls_to_one_model_does_not_starve_another() -> None:
    depot = Depot(limit=1)
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            with depot.pool.lend("a"):
                time.sleep(0.001)

    with ThreadPoolExecutor(9) as threads:
        for _ in range(8):
            threads.submit(hammer)
        wait_until(lambda: "a" in depot.loads)
        threads.submit(depot.use, "b").result(timeout=10)
        stop.set()


def test_threads_load_weights_once_and_never_share_them_after_closing() -> None:
    depot = Depot(limit=2)
    lock = threading.Lock()

    def use(number: int) -> None:
        with depot.pool.lend("abc"[number % 3]) as engine:
            weights = cast(Weights, engine)
            with lock:
                assert not weights.closed
                assert weights.name == "abc"[number % 3]
                weights.busy += 1
            time.sleep(0.001)
            with lock:
                weights.busy -= 1

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(use, range(300)))
    assert len(depot.pool.list_loaded()) == 2
    assert sum(weights.closed for weights in depot.made) == len(depot.made) - 2


def test_a_failed_load_reaches_all_who_asked_and_leaves_no_trace() -> None:
    depot = Depot(limit=2)
    for _ in range(2):
        with pytest.raises(RolloutError, match="cannot read"):
            depot.use("broken")
    assert depot.loads == ["broken", "broken"]
    assert depot.pool.list_loaded() == ()


def test_a_broken_engine_is_replaced_at_the_next_call() -> None:
    depot = Depot(limit=2)
    with depot.pool.lend("a") as engine:
        cast(Weights, engine).failure = RolloutError("dead")
    depot.use("a")
    assert depot.loads == ["a", "a"]
    assert depot.made[0].closed == 1


def test_unloading_waits_for_the_calls_under_way() -> None:
    depot = Depot(limit=2)
    with depot.pool.lend("a"):
        depot.pool.unload("a")
        assert not depot.made[0].closed
    assert depot.made[0].closed == 1
    depot.pool.unload("a")
    depot.use("a")
    depot.pool.unload_idle()
    assert depot.pool.list_loaded() == ()
    depot.use("b")
    depot.pool.close()
    assert [weights.closed for weights in depot.made] == [1, 1, 1]


@pytest.mark.local
def test_a_request_that_ends_before_its_first_token_is_an_empty_reply():
    """OpenVINO hands out nothing at all then, now and then: once in some ten thousand replies that a stop ended."""
    from openvino_genai import GenerationStatus

    from sirius_dspy.local.batching import Call
    from sirius_dspy.local.openvino_engine import _hand_out

    class Ended:
        def get_status(self):
            return GenerationStatus.FINISHED

        def read_all(self):
            return []

    call = Call([1, 2], 8, GenerationOptions(max_tokens=8))
    _hand_out(Ended(), call)
    assert call.done.result(timeout=0)[:2] == ([], "stop")
