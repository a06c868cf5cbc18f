"""A server that is asked directly answers as it does through DSPy: text, history, usage, cache, errors and retries."""

import threading
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import LMError
from dspy.utils.usage_tracker import track_usage

from sirius_dspy.running.direct import direct_lm
from sirius_dspy.running.record import record
from sirius_dspy.testing import FaultServer, chat_reply

QUESTION = "2+2? \u00e4\U0001f600"


@pytest.fixture
def server():
    with FaultServer(lambda prompt: chat_reply(answer=f"{prompt.temperature} {prompt.text}")) as server:
        yield server


def direct(lm, **inputs):
    other = direct_lm(lm, {}, inputs)
    assert other is not lm
    return other


def entry_of(lm, **kwargs):
    """The outputs, what the usage tracker heard, and the entry in the history."""
    with track_usage() as tracker:
        outputs = lm(QUESTION, **kwargs)
    entry = {name: value for name, value in lm.history[-1].items() if name not in ("timestamp", "uuid", "cost_details")}
    return outputs, tracker.get_total_tokens(), entry


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"temperature": 0.5, "max_tokens": 7}, {"seed": 3, "stop": ["x"]}, {"rollout_id": 1, "temperature": 1.0}],
)
def test_a_call_tells_what_dspys_own_tells(server, kwargs):
    lm = server.lm(temperature=0.2)
    assert entry_of(direct(lm), **kwargs) == entry_of(lm, **kwargs)
    assert len(lm.history) == 2  # it is the LM's own


@pytest.mark.parametrize("fault", ["500", "429", "401", "404", "reset", "broken", "empty", "cut"])
def test_an_error_is_dspys(server, fault):
    server.faults = lambda prompt, before: fault
    errors = []
    for lm in (server.lm(), direct(server.lm())):
        with pytest.raises(LMError) as caught:
            lm(QUESTION)
        errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    assert vars(errors[0]) == vars(errors[1])
    assert str(errors[0]) == str(errors[1])


def test_dspys_retries_are_made(server):
    server.faults = lambda prompt, before: None if before else "reset"
    lm = direct(server.lm(num_retries=1))
    assert "0.0" in lm(QUESTION, temperature=0.0)[0]
    assert server.calls == 2


@pytest.mark.parametrize("is_first", [True, False])
def test_the_cache_is_shared_with_dspys_calls(server, is_first):
    lm = server.lm(cache=True, model=f"openai/cached-{is_first}")
    first, second = (direct(lm), lm) if is_first else (lm, direct(lm))
    assert entry_of(first)[0] == entry_of(second)[0]
    assert server.calls == 1


def test_callbacks_hear_of_calls(server):
    class Counting(BaseCallback):
        heard = ()

        def on_lm_start(self, call_id, instance, inputs):
            self.heard += (instance.model,)

    counting = Counting()
    with dspy.context(callbacks=[counting]):
        direct(server.lm())(QUESTION)
    assert counting.heard == ("openai/served",)


def test_recorded_calls_do_not_search_the_price_table(server, monkeypatch):
    asked = []
    monkeypatch.setattr("dspy.clients.costs.model_info", lambda *names, **options: asked.append(names) or {})
    program = dspy.Predict("question -> answer")
    program.set_lm(server.lm())
    program(question="?")
    assert asked
    asked.clear()
    assert record(program, {"question": "?"}).prediction.answer
    assert asked == []


class Own(dspy.LM):
    pass


@pytest.mark.parametrize(
    ("lm", "kwargs", "inputs"),
    [
        (Own("openai/served"), {}, {}),
        (dspy.LM("openai/gpt-4o-mini"), {}, {}),
        (dspy.LM("anthropic/served"), {}, {}),
        (dspy.LM("openai/served", engine="litellm"), {}, {}),
        (dspy.LM("openai/served", model_type="text"), {}, {}),
        (dspy.LM("openai/served", timeout=3), {}, {}),
        (dspy.LM("openai/served"), {"api_base": "http://elsewhere"}, {}),
        (dspy.LM("openai/served"), {"n": 2}, {}),
        (dspy.LM("openai/served"), {}, {"picture": dspy.Image(url="https://example.com/cat.png")}),
        (object(), {}, {}),
    ],
)
def test_what_is_unusual_is_left_to_dspy(lm, kwargs, inputs):
    assert direct_lm(lm, kwargs, inputs) is lm


def test_a_server_whose_model_has_a_listed_price_is_left_to_dspy_from_then_on(server, monkeypatch):
    monkeypatch.setattr(
        "sirius_dspy.running.direct.has_listed_price", lambda provider, model: model == "served-by-name"
    )
    lm = server.lm("openai/served-by-name")
    assert direct_lm(lm, {}, {}) is lm
    other = server.lm("openai/unlisted")
    first = direct(other)
    monkeypatch.setattr("sirius_dspy.running.direct.has_listed_price", lambda provider, model: True)
    first(QUESTION)
    assert direct_lm(other, {}, {}) is other


def test_more_calls_are_under_way_than_dspy_has_connections():
    number = 110
    together = threading.Barrier(number, timeout=20)

    def answer(prompt):
        together.wait()
        return "together"

    with FaultServer(answer) as server, ThreadPoolExecutor(number) as threads:
        lm = direct(server.lm())
        assert list(threads.map(lambda _: lm(QUESTION), range(number))) == [["together"]] * number


def test_closing_the_lm_closes_the_connections_and_the_next_call_opens_new_ones(server):
    lm = server.lm()
    answer = direct(lm)(QUESTION)
    lm.close()
    assert direct(lm)(QUESTION) == answer
    listed = dspy.LM("openai/gpt-4o-mini")
    assert direct_lm(listed, {}, {}) is listed
    listed.close()
