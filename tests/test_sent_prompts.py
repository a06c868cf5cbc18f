"""A training prompt is the prompt that was sent: over annotations, values, adapters, demonstrations and programs."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
from typing import Any

import dspy
import pydantic
import pytest
from dspy.lm15 import TokenLogprob
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from sirius_dspy import Collect, Curator, ExperienceLibrary, PlainAdapter, SiriuS
from sirius_dspy.errors import NoSuccessError
from sirius_dspy.running.prompt import SentPrompt
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ToyLM, chat_reply
from sirius_dspy.training.curate import TrainingSet


class Color(enum.Enum):
    RED = "red"
    TWO = 2


class Item(BaseModel):
    name: str
    price: float = 0.0


class Sold(Item):
    buyer: str = "b"


@dataclasses.dataclass
class Box:
    items: list[Any]


SIMPLE = (str, int, float, bool, Any, datetime.date, decimal.Decimal, Color, Item, Box)
NESTED = (list[float], dict[str, float], list[Item], list[Color], tuple[int, ...], set[str], int | None, str | Item)
ANNOTATIONS = st.sampled_from((*SIMPLE, *NESTED))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    st.sampled_from([Color.RED, Color.TWO, Item(name="a", price=3), Sold(name="s", buyer="x"), Box([1])]),
    st.dates(),
    st.datetimes(timezones=st.just(datetime.UTC)),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.just(dspy.Prediction(answer="x")),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text("abc$", min_size=1, max_size=3), inner, max_size=2),
        st.sets(st.integers(0, 9), max_size=3),
    ),
    max_leaves=5,
)
ADAPTERS = st.sampled_from([dspy.ChatAdapter(use_json_adapter_fallback=False), PlainAdapter(), dspy.XMLAdapter()])


def reply(prompt):
    if "<answer>" in prompt.text:
        return "<answer>ok</answer>"
    return chat_reply(answer="ok") if "[[ ## " in prompt.text else "ok"


class Asker(dspy.Module):
    """Sends one value that it makes itself, so that it need not be storable."""

    def __init__(self, annotation, value, *, instructions=""):
        super().__init__()
        fields = {
            "value": (annotation, dspy.InputField()),
            "question": (str, dspy.InputField()),
            "answer": (str, dspy.OutputField()),
        }
        self.ask = dspy.Predict(dspy.Signature(fields, "Answer."))
        self.value = value
        self.instructions = instructions

    def forward(self, question):
        signature = self.ask.signature
        if self.instructions:
            signature = signature.with_instructions(f"{self.instructions} {question}")
        return self.ask(value=self.value, question=question, signature=signature)


def yes(example, prediction, trace=None):
    return 1.0


def questions(number):
    return [dspy.Example(question=f"q{position}").with_inputs("question") for position in range(number)]


def collect(program, tmp_path_factory, *, demos=None):
    """(rows of the only agent, what was dropped, the library)."""
    rollouts = Rollouts(yes, demos=demos or {}, num_threads=1)
    library = ExperienceLibrary(tmp_path_factory.mktemp("library") / "library.sqlite")
    for task, run in rollouts.run_all(program, [Task(example) for example in questions(2)]):
        library.add(run, task.example)
    sets = Curator().curate(program, library.trajectories(), {"agent": ["ask"]}, threshold=1.0)
    return sets["agent"], library


def sent(lm):
    """(system, last user message) of everything that the LM was asked."""
    return {(request.system, request.user) for request in lm.requests}


def asked(row):
    texts = {message["role"]: message["content"] for message in row.messages[:-1]}
    return texts.get("system", ""), texts["user"]


@given(annotation=ANNOTATIONS, value=VALUES, adapter=ADAPTERS, varied=st.booleans(), shown=st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_row_has_the_prompt_of_a_request_and_no_row_is_lost(
    tmp_path_factory, annotation, value, adapter, varied, shown
):
    # DSPy 3.4 cannot write a list of anything but texts into a text field: its chat adapter raises a TypeError.
    assume(not (annotation is str and isinstance(value, list) and not all(isinstance(item, str) for item in value)))
    program = Asker(annotation, value, instructions="Mind the day." if varied else "")
    lm = ToyLM(skill=reply)
    program.set_lm(lm)
    demos = {"ask": [dspy.Example(value=1, question="q", answer="a")]} if shown else None
    with dspy.context(adapter=adapter):
        found, library = collect(program, tmp_path_factory, demos=demos)
    assert len(found.rows) == 2, found.dropped
    assert {asked(row) for row in found.rows} <= sent(lm)
    assert all(row.request for row in found.rows)
    file = tmp_path_factory.mktemp("rows") / "agent.jsonl"
    found.write(file)
    assert library.verify_rows(file) == []
    assert library.verify() == []


def test_a_row_that_was_not_sent_is_found(tmp_path_factory):
    program = Asker(str, "v")
    program.set_lm(ToyLM(skill=reply))
    with dspy.context(adapter=PlainAdapter()):
        found, library = collect(program, tmp_path_factory)
    file = tmp_path_factory.mktemp("rows") / "agent.jsonl"

    def problems(*rows):
        TrainingSet("agent", rows).write(file)
        return library.verify_rows(file)

    first, second = found.rows
    other = ({"role": "user", "content": "never sent"}, first.messages[-1])
    assert problems(first, second) == []
    assert "another prompt" in problems(dataclasses.replace(first, messages=other))[0]
    assert (
        "not sent in its run"
        in problems(dataclasses.replace(first, messages=second.messages, request=second.request))[0]
    )
    assert "does not have" in problems(dataclasses.replace(first, trajectory="nowhere"))[0]
    problems(first)
    file.write_text(file.read_text().replace("q0", "q9").replace("q1", "q9"))
    assert "not the one that was written" in library.verify_rows(file)[0]
    file.write_text("")
    assert "0 rows" in library.verify_rows(file)[0]


def test_demonstrations_are_cut_out_of_the_prompt_and_nothing_else(tmp_path_factory):
    program = Asker(str, "v")
    lm = ToyLM(skill=reply)
    program.set_lm(lm)
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        found, _ = collect(
            program, tmp_path_factory, demos={"ask": [dspy.Example(value="w", question="a demonstration", answer="a")]}
        )
    assert all("a demonstration" in request.text for request in lm.requests)
    assert not any("a demonstration" in message["content"] for row in found.rows for message in row.messages)
    assert all([message["role"] for message in row.messages] == ["system", "user", "assistant"] for row in found.rows)


def test_an_adapter_whose_prompt_depends_on_demonstrations_gives_no_row(tmp_path_factory):
    class Telling(PlainAdapter):
        def format(self, signature, demos, inputs):
            messages = super().format(signature, demos, inputs)
            messages[-1]["content"] += f"\n{len(demos)} examples above"
            return messages

    program = Asker(str, "v")
    program.set_lm(ToyLM(skill=reply))
    with dspy.context(adapter=Telling()):
        found, _ = collect(
            program, tmp_path_factory, demos={"ask": [dspy.Example(value="w", question="q", answer="a")]}
        )
    assert found.rows == ()
    assert found.dropped == {"what was sent cannot be a training prompt": 2}


def test_a_prompt_that_was_sent_before_a_fallback_is_trained():
    program = Asker(str, "v")
    lm = ToyLM(skill=lambda prompt: json.dumps({"answer": "ok"}))
    program.set_lm(lm)
    with dspy.context(adapter=dspy.ChatAdapter()):
        rollouts = Rollouts(yes, num_threads=1)
        ((_, run),) = rollouts.run_all(program, [Task(questions(1)[0])])
    first = lm.requests[0]
    assert len(lm.requests) == 2
    assert json.loads(run.steps[0].prompt)[-1]["content"] == first.user


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_prompt_and_the_end_of_a_reply_are_kept_under_asyncio_as_well(asynchronous):
    class Program(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question):
            return self.ask(question=question)

        async def aforward(self, question):
            return await self.ask.acall(question=question)

    if asynchronous:
        del Program.forward
    program = Program()
    lm = ToyLM(skill=reply)
    program.set_lm(lm)
    with dspy.context(adapter=PlainAdapter()):
        ((_, run),) = Rollouts(yes).run_all(program, [Task(questions(1)[0])])
    (step,) = run.steps
    assert step.finish == "stop"
    assert (
        step.prompt
        == SentPrompt([{"role": item["role"], "content": item["content"]} for item in json.loads(step.prompt)]).text
    )
    assert lm.requests[0].user == json.loads(step.prompt)[-1]["content"]


def cutting(lm, is_cut):
    """The LM whose replies end at the token limit where `is_cut` says so."""
    whole = lm.engine.complete

    def complete(request):
        response = whole(request)
        return dataclasses.replace(response, finish_reason="length") if is_cut(response.message.text) else response

    lm.engine.complete = complete
    return lm


def test_replies_that_were_cut_off_are_not_taught_and_counted(tmp_path):
    program = Asker(str, "v")
    program.set_lm(cutting(ToyLM(skill=reply), lambda text: True))
    with dspy.context(adapter=PlainAdapter()), pytest.raises(NoSuccessError, match="3 x cut off at the token limit"):
        SiriuS(yes, collect=Collect(samples=1), augmenter=None, run_dir=tmp_path).compile(
            program, trainset=questions(3), valset=questions(3)
        )


class Source(pydantic.BaseModel):
    url: pydantic.HttpUrl


class Account(pydantic.BaseModel):
    key: pydantic.SecretStr


def compiled_with(annotation, answer, run_dir):
    """Compile a program whose answers are of a type."""
    fields = {"question": (str, dspy.InputField()), "answer": (annotation, dspy.OutputField())}
    program = dspy.Predict(dspy.Signature(fields, "Answer."))
    program.set_lm(ToyLM(skill=lambda prompt: answer))
    optimizer = SiriuS(yes, iterations=1, collect=Collect(samples=1), augmenter=None, run_dir=run_dir)
    with dspy.context(adapter=PlainAdapter()):
        return optimizer.compile(program, trainset=questions(3), valset=questions(3))


def test_outputs_of_pydantics_own_types_are_taught(tmp_path):
    compiled = compiled_with(Source, '{"url": "https://example.com/"}', tmp_path)
    assert compiled.detailed_results["iterations"][1]["agents"]["self"]["rows"] == 3


def test_outputs_that_cannot_be_stored_are_not_taught_and_counted(tmp_path):
    with pytest.raises(NoSuccessError, match="3 x holds a value that cannot be stored"):
        compiled_with(Account, '{"key": "k"}', tmp_path)


def test_log_probabilities_beside_the_fields_are_no_hindrance(tmp_path_factory):
    program = Asker(str, "v")
    lm = ToyLM(skill=reply, logprobs=True)
    plain = lm.engine.complete
    lm.engine.complete = lambda request: dataclasses.replace(plain(request), logprobs=(TokenLogprob("ok", -0.1),))
    program.set_lm(lm)
    with dspy.context(adapter=PlainAdapter()):
        found, _ = collect(program, tmp_path_factory)
    assert len(found.rows) == 2


def test_recording_leaves_the_history_of_an_lm_alone():
    program = Asker(str, "v")
    lm = ToyLM(skill=reply)
    program.set_lm(lm)
    with dspy.context(adapter=PlainAdapter()):
        list(Rollouts(yes).run_all(program, [Task(example) for example in questions(3)]))
        assert lm.history == []
        program(question="q")
    assert len(lm.history) == 1
