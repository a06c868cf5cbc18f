"""Agents that call tools natively: what is recorded, and what training rows hold."""

from __future__ import annotations

import json
from dataclasses import replace

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.repair.reliance import score_reply
from sirius_dspy.running.prompt import SentPrompt
from sirius_dspy.running.recording import Sampling
from sirius_dspy.running.replay import replay
from sirius_dspy.testing import chat_reply
from sirius_dspy.training.balanced import BalancedCurator
from sirius_dspy.training.curate import Curator
from sirius_dspy.trajectory import Edit
from tests.native import ADAPTER, TOOLS, Watched, calls_of, now, planner, rows_of, run_of, search, turn


@pytest.fixture(autouse=True)
def native_adapter():
    with dspy.context(adapter=ADAPTER):
        yield


# Rows

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda part: st.lists(part, max_size=2) | st.dictionaries(TEXT, part, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["search", "now"]), st.dictionaries(TEXT, VALUE, max_size=2)), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(CALLS)
def test_a_row_holds_what_was_sent_and_the_calls_that_came_back(calls):
    program = planner()
    with dspy.context(adapter=ADAPTER):
        lm = Watched(["", *((f"call_{place}", *call) for place, call in enumerate(calls))])
        (row,) = rows_of(program, run_of(program, lm, question="Zürich?", tools=TOOLS))
    ((messages, tools),) = lm.sent
    assert (row["messages"][:-1], json.dumps(row["tools"])) == (messages, tools)
    assert calls_of(row) == calls
    assert [call["id"] for call in row["messages"][-1]["tool_calls"]] == [f"call_{n}" for n in range(len(calls))]
    assert row["messages"][-1]["content"] is None


def test_text_beside_the_calls_is_part_of_the_reply():
    program = planner("question, tools: list[dspy.Tool] -> plan, calls: dspy.ToolCalls")
    lm = Watched([chat_reply(plan="Look at „Zürich“."), ("a", "now", {})])
    (row,) = rows_of(program, run_of(program, lm, question="?", tools=TOOLS))
    reply = row["messages"][-1]
    assert "Look at „Zürich“." in reply["content"]
    assert calls_of(row) == [("now", {})]


def test_an_agent_that_could_have_called_a_tool_and_did_not_has_the_tools_in_its_row():
    program = planner("question, tools: list[dspy.Tool] -> answer, calls: dspy.ToolCalls")
    lm = Watched([chat_reply(answer="4")])
    (row,) = rows_of(program, run_of(program, lm, question="2+2?", tools=TOOLS))
    assert [tool["function"]["name"] for tool in row["tools"]] == ["search", "now"]
    assert "tool_calls" not in row["messages"][-1]
    assert "4" in row["messages"][-1]["content"]


def test_a_row_says_what_the_lm_itself_sets_for_its_tools():
    call = ["", ("a", "now", {})]
    (row,) = rows_of(planner(), run_of(planner(), Watched(call, parallel_tool_calls=False), question="?", tools=TOOLS))
    assert row["parallel_tool_calls"] is False
    forced = run_of(planner(), Watched(call, tool_choice="required"), question="?", tools=TOOLS)
    assert forced.steps[0].prompt is None  # a row cannot say so


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("with_tools", [True, False])
def test_turns_with_tools_keep_their_calls_and_results(turns, with_tools):
    program = planner("question, history: dspy.History -> answer")
    history = dspy.History(messages=[turn(number, with_tools=with_tools) for number in range(turns)])
    lm = Watched([chat_reply(answer="last")])
    (row,) = rows_of(program, run_of(program, lm, question="now", history=history))
    assert row["messages"][:-1] == lm.sent[0][0]
    roles = ["user", "assistant", "tool"] if with_tools else ["user", "assistant"]
    assert [message["role"] for message in row["messages"]] == ["system", *roles * turns, "user", "assistant"]


def react(*replies):
    program = dspy.ReActV2("question -> answer", tools=[search, now])
    return program, Watched(*replies)


LOOP = (
    [chat_reply(next_thought="Look."), ("x", "search", {"query": "Zürich"}), ("y", "now", {})],
    ["", ("z", "submit", {"answer": "noon"})],
)


def test_each_turn_of_a_react_is_a_row():
    program, lm = react(*LOOP)
    first, second = rows_of(program, run_of(program, lm, question="?"))
    assert [row["messages"][:-1] for row in (first, second)] == [messages for messages, _ in lm.sent]
    assert [json.dumps(row["tools"]) for row in (first, second)] == [tools for _, tools in lm.sent]
    assert calls_of(first) == [("search", {"query": "Zürich"}), ("now", {})]
    assert calls_of(second) == [("submit", {"answer": "noon"})]
    results = [message for message in second["messages"] if message["role"] == "tool"]
    assert [(message["tool_call_id"], message["content"]) for message in results] == [
        ("x", "about Zürich"),
        ("y", "noon"),
    ]
    assert second["messages"][2] == first["messages"][-1]


def test_a_prompt_without_its_demonstrations_is_the_prompt_that_would_be_sent():
    call = dspy.ToolCalls.from_dict_list([{"name": "now", "args": {}}])
    demo = dspy.Example(question="When?", tools=TOOLS, calls=call).with_inputs("question", "tools")
    program = planner("question, tools: list[dspy.Tool] -> plan, calls: dspy.ToolCalls")
    demos = {"self": [demo.copy(plan="Look at the clock.")]}
    lm = Watched(*[[chat_reply(plan="p"), ("a", "now", {})]] * 2)
    with_demos = run_of(program, lm, Sampling(demos=demos), question="?", tools=TOOLS)
    assert len(lm.sent[0][0]) == 4
    assert with_demos.steps[0].prompt == run_of(program, lm, question="?", tools=TOOLS).steps[0].prompt


def test_a_choice_that_was_forced_is_no_row():
    """The last turn of a ReAct must call `submit`, which a row cannot say."""
    program, lm = react(["", ("x", "now", {})], ["", ("y", "submit", {"answer": "noon"})])
    run = run_of(program, lm, question="?", max_iters=1)
    (found,) = Curator().curate(program, [run], {"react": ["react"]}, threshold=1.0).values()
    assert [calls_of(row.chat) for row in found.rows] == [[("now", {})]]
    assert found.dropped == {"what was sent cannot be a training prompt": 1}


def test_replies_that_differ_in_the_ids_of_their_calls_are_one_row():
    program = planner()
    runs = [run_of(program, Watched(["", (id, "now", {})]), question="?", tools=TOOLS) for id in ("a", "b")]
    (found,) = Curator().curate(program, runs, {"self": ["self"]}, threshold=1.0).values()
    assert (len(found.rows), found.dropped) == (1, {"duplicate": 1})


def test_calls_without_ids_get_some():
    program = planner()
    run = run_of(program, Watched(["", ("a", "now", {}), ("b", "now", {})]), question="?", tools=TOOLS)
    (step,) = run.steps
    text = json.dumps(dict(step.outputs)).replace('"id": "a"', '"id": null').replace('"id": "b"', '"id": null')
    (row,) = rows_of(program, replace(run, steps=(replace(step, outputs=json.loads(text)),)))
    assert [call["id"] for call in row["messages"][-1]["tool_calls"]] == ["call_0", "call_1"]


def test_replies_with_calls_are_one_value_of_a_balanced_field():
    program = planner("question, tools: list[dspy.Tool] -> answer, calls: dspy.ToolCalls")
    lm = Watched(*[[chat_reply(answer=answer)] for answer in ("yes", "yes", "no")], ["", ("a", "now", {})])
    runs = [run_of(program, lm, question=f"{number}?", tools=TOOLS) for number in range(4)]
    runs = [replace(run, example_key=str(number)) for number, run in enumerate(runs)]
    (found,) = BalancedCurator().curate(program, runs, {"self": ["self"]}, threshold=1.0).values()
    assert (len(found.rows), found.dropped) == (3, {"out of balance": 1})


# Storage, replay


def test_prompts_with_tools_come_back_from_the_library_as_they_were(tmp_path):
    program, lm = react(*LOOP)
    run = run_of(program, lm, question="?")
    with ExperienceLibrary(tmp_path / "library.db") as library:
        library.add(run)
        (stored,) = library.trajectories()
    assert (stored.id, stored.steps) == (run.id, run.steps)
    assert rows_of(program, stored) == rows_of(program, run)


def test_a_prompt_of_texts_alone_is_stored_as_before():
    messages = [{"role": "user", "content": "?"}]
    assert json.loads(SentPrompt(messages).text) == messages
    assert SentPrompt.read(SentPrompt(messages).text) == SentPrompt(messages)


def test_a_run_with_tool_calls_is_replayed_without_asking_again():
    program, lm = react(*LOOP)
    run = run_of(program, lm, question="?")
    edit = Edit(1, run.steps[1].outputs)
    replayed = replay(program, {"question": "?"}, run, edit)
    assert replayed.prediction.answer == "noon"
    assert [step.prompt for step in replayed.steps] == [step.prompt for step in run.steps]
    assert lm.engine.replies == []


# Repair


def test_the_guard_reads_the_arguments_of_tool_calls_and_not_their_ids():
    (step,) = run_of(planner(), Watched(["", ("12", "search", {"query": "Bern"})]), question="?", tools=TOOLS).steps

    def leak(*calls):
        (edited,) = run_of(planner(), Watched(["", *calls]), question="?", tools=TOOLS).steps
        return LeakGuard().leak(edited.outputs, step, {"answer": "7"}, answers=False)

    assert "'7'" in leak(("a", "search", {"query": "x", "options": {"deep": [{"n": 7}]}}))
    assert leak(("7", "search", {"query": "x"})) == ""


def test_how_likely_native_calls_are_is_left_open_and_is_told_of_calls_that_are_text():
    class Scoring(Watched):
        def score(self, messages, reply):
            return [-1.0]

    outputs = {"calls": dspy.ToolCalls.from_dict_list([{"name": "now", "args": {}}])}

    def score():
        return score_reply(Scoring(), planner().signature, {"question": "?", "tools": TOOLS}, outputs)

    assert score() is None
    with dspy.context(adapter=dspy.ChatAdapter()):
        assert score() == [-1.0]
