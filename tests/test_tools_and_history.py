"""Programs whose agents call tools or continue a conversation: what becomes of their steps."""

from __future__ import annotations

import json

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy import Collect, CriticAugmenter, HostedTrainer, SiriuS, open_export
from sirius_dspy.errors import UnpreparedProgramError, UnreadableValueError
from sirius_dspy.plain import from_plain, to_plain
from sirius_dspy.testing import ToyLM, chat_reply
from sirius_dspy.training.prompts import PromptProbe
from tests.openai_server import FakeOpenAI
from tests.test_hosted import lm_at, request

pytestmark = pytest.mark.usefixtures("chat_adapter")


def search(query: str) -> str:
    """Look something up."""
    return f"about {query}"


def now() -> str:
    """Tell the time."""
    return "noon"


class Calling(ToyLM):
    """An LM that can call tools natively."""

    supports_function_calling = True


class Desk(dspy.Module):
    def __init__(self):
        super().__init__()
        self.planner = dspy.Predict("question, tools: list[dspy.Tool] -> calls: dspy.ToolCalls")
        self.writer = dspy.Predict("question, calls -> answer")

    def forward(self, question):
        planned = self.planner(question=question, tools=[dspy.Tool(search), dspy.Tool(now)]).calls
        return self.writer(question=question, calls=str(planned))


CALLS = json.dumps({"tool_calls": [{"name": "search", "args": {"query": "Zürich"}}, {"name": "now", "args": {}}]})


def skill(prompt):
    return chat_reply(calls=CALLS) if prompt.asks_for("calls") else chat_reply(answer="noon")


def compiled_by(run_dir, program, examples, metric=lambda example, prediction: True, augmenter=None):
    settings = {"iterations": 1, "collect": Collect(samples=1), "num_threads": 1}
    optimizer = SiriuS(metric, run_dir=run_dir, augmenter=augmenter, **settings)
    return optimizer.compile(program, trainset=examples, valset=examples)


def rows_of(run_dir, agent):
    text = (run_dir / "training" / "iteration-1" / f"{agent}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["messages"] for line in text.splitlines()]


def asking(lm):
    program = Desk()
    program.set_lm(lm)
    return program, [dspy.Example(question="When?").with_inputs("question")]


def test_tool_calls_that_are_text_become_rows(tmp_path):
    program, examples = asking(Calling(skill=skill))
    compiled_by(tmp_path, program, examples)
    (row,) = rows_of(tmp_path, "planner")
    assert [message["role"] for message in row] == ["system", "user", "assistant"]
    assert "search" in row[1]["content"]
    assert "Zürich" in row[-1]["content"]


def planned(prompt):
    """Searches for the right town only after advice."""
    if prompt.asks_for("feedback"):
        return chat_reply(feedback="Search for Zürich.")
    if prompt.asks_for("rewritten"):
        return chat_reply(rewritten=prompt.field("text"))
    if prompt.asks_for("calls"):
        town = "Zürich" if prompt.field("feedback") else "Bern"
        return chat_reply(calls=json.dumps({"tool_calls": [{"name": "search", "args": {"query": town}}]}))
    return chat_reply(answer="right" if "Zürich" in prompt.field("calls") else "wrong")


def test_a_step_that_called_the_wrong_tool_is_repaired(tmp_path):
    program, examples = asking(Calling(skill=planned))
    compiled = compiled_by(
        tmp_path, program, examples, lambda example, prediction: prediction.answer == "right", CriticAugmenter()
    )
    assert compiled(question="When?").answer == "right"
    (row,) = rows_of(tmp_path, "planner")
    assert "tell the time" in row[1]["content"].lower()
    assert "Zürich" in row[-1]["content"]


def test_a_stored_tool_describes_itself_but_cannot_be_called():
    restored = from_plain(json.loads(json.dumps(to_plain(dspy.Tool(search)))))
    assert (str(restored), restored.args) == (str(dspy.Tool(search)), {"query": {"type": "string"}})
    with pytest.raises(UnreadableValueError, match="does not hold its function"):
        restored.func(query="x")


def test_tool_calls_are_exported_as_the_text_that_a_row_has(tmp_path):
    program, examples = asking(Calling(skill=skill))
    compiled_by(tmp_path, program, examples)
    export = open_export(tmp_path, adapter=dspy.settings.adapter)
    export.to_sft(tmp_path / "sft.jsonl")
    export.library.close()
    written = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text(encoding="utf-8").splitlines()]
    (row,) = [row["prompt"] + row["completion"] for row in written if row["agent"] == "planner"]
    assert [row] == rows_of(tmp_path, "planner")


def native():
    return dspy.ChatAdapter(use_native_function_calling=True, use_json_adapter_fallback=False)


def test_an_agent_with_native_tool_calls_is_refused_before_the_first_call(tmp_path):
    dspy.configure(adapter=native())
    lm = Calling(skill=skill)
    program, examples = asking(lm)
    with pytest.raises(UnpreparedProgramError, match=r"'planner'.*'calls'.*ChatAdapter\(use_native.*frozen"):
        compiled_by(tmp_path, program, examples)
    assert lm.calls == 0


def test_an_lm_without_native_tool_calls_writes_them_as_text_also_under_such_an_adapter(tmp_path):
    dspy.configure(adapter=native())
    program, examples = asking(ToyLM(skill=skill))
    compiled_by(tmp_path, program, examples)
    assert len(rows_of(tmp_path, "planner")) == 1


TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda part: st.lists(part, max_size=2), max_leaves=4
)
ARGUMENTS = st.dictionaries(TEXT, VALUE | st.dictionaries(TEXT, VALUE, max_size=2), max_size=2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["search", "now"]), ARGUMENTS), max_size=3))
def test_the_reply_of_a_row_parses_back_into_the_tool_calls(calls):
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        program = Desk()
        outputs = {"calls": dspy.ToolCalls.from_dict_list([{"name": name, "args": args} for name, args in calls])}
        inputs = {"question": "When?", "tools": [dspy.Tool(search)]}
        reply, reason = PromptProbe(program).reply("planner", to_plain(inputs), to_plain(outputs))
        assert reason == ""
        parsed = dspy.settings.adapter.parse(program.planner.signature, reply["content"])["calls"]
    assert [(call.name, call.args) for call in parsed.tool_calls] == calls


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_turns_of_a_history_stay_turns(turns, tmp_path):
    program = dspy.Predict("question, history: dspy.History -> answer")
    program.set_lm(ToyLM(skill=lambda prompt: chat_reply(answer="last")))
    history = dspy.History(messages=[{"question": f"q{n}", "answer": f"„a{n}“"} for n in range(turns)])
    examples = [dspy.Example(question="now", history=history).with_inputs("question", "history")]
    compiled_by(tmp_path, program, examples)
    (row,) = rows_of(tmp_path, "self")
    assert [message["role"] for message in row] == ["system", *["user", "assistant"] * (turns + 1)]
    replies = [message["content"] for message in row if message["role"] == "assistant"]
    assert ["„a" in reply for reply in replies] == [True] * turns + [False]
    with FakeOpenAI(["succeeded"]).serving() as url:
        HostedTrainer().train(request(tmp_path, lm_at(url), rows=[{"messages": row}]))


def test_only_the_last_reply_is_learned_at_a_server(tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": text} for role, text in turns]
    fake = FakeOpenAI(["succeeded"])
    with fake.serving() as url:
        HostedTrainer().train(request(tmp_path, lm_at(url), rows=[{"messages": messages}]))
    (sent,) = fake.files.values()
    weights = [message.get("weight") for message in json.loads(sent)["messages"]]
    assert weights == [None, 0, None, None]
