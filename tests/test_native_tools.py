"""Agents that call tools natively: what is recorded, and what training rows hold."""

from __future__ import annotations

import json
from dataclasses import replace

import dspy
import pytest
from dspy import lm15
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy import Collect, CriticAugmenter, HostedTrainer, ProviderTrainer, SiriuS, load, open_export, save
from sirius_dspy.errors import NoSuccessError, UnpreparedProgramError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.program import program_fingerprint
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.running.prompt import SentPrompt
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Sampling
from sirius_dspy.running.replay import replay
from sirius_dspy.testing import chat_reply
from sirius_dspy.testing.library import make_run
from sirius_dspy.training.curate import Curator
from sirius_dspy.training.hosted_lm import retrained
from sirius_dspy.training.tools import check_tools
from sirius_dspy.trajectory import Edit, Trajectory
from tests.openai_server import FakeOpenAI
from tests.test_hosted import lm_at

ADAPTER = dspy.ChatAdapter(use_native_function_calling=True, use_json_adapter_fallback=False)


def search(query: str, options: dict | None = None) -> str:
    """Look something up."""
    return f"about {query}"


def now() -> str:
    """Tell the time."""
    return "noon"


TOOLS = [dspy.Tool(search), dspy.Tool(now)]


@pytest.fixture(autouse=True)
def native_adapter():
    with dspy.context(adapter=ADAPTER):
        yield


class Scripted:
    """An engine that calls tools natively: each reply is a text, and tool calls as (id, name, arguments)."""

    supports_function_calling = True

    def __init__(self, *replies):
        self.replies = list(replies)

    def complete(self, request):
        text, *calls = self.replies.pop(0)
        parts = [lm15.TextPart(text)] if text or not calls else []
        message = lm15.Message.assistant([*parts, *(lm15.ToolCallPart(*call) for call in calls)])
        usage = lm15.Usage(input_tokens=1, output_tokens=1)
        return lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)


class Watched(dspy.LM):
    """An LM that notes what adapters send."""

    def __init__(self, *replies, **settings):
        super().__init__("scripted/lm", engine=Scripted(*replies), cache=False, **settings)
        self.sent = []

    def __call__(self, prompt=None, messages=None, **kwargs):
        self.sent.append((json.loads(json.dumps(messages)), json.dumps(kwargs.get("tools", []))))
        return super().__call__(prompt, messages=messages, **kwargs)


def planner(signature="question, tools: list[dspy.Tool] -> calls: dspy.ToolCalls"):
    return dspy.Predict(signature)


def run_of(program, lm, sampling=None, **inputs) -> Trajectory:
    program.set_lm(lm)
    recording = record(program, inputs, sampling or Sampling())
    assert recording.error is None
    return make_run(steps=recording.steps, program=program_fingerprint(program))


def rows_of(program, run):
    agents = {name: [name] for name, _ in program.named_predictors()}
    sets = Curator().curate(program, [run], agents, threshold=1.0)
    assert [found.dropped for found in sets.values()] == [{}] * len(sets)
    return [row.chat for found in sets.values() for row in sorted(found.rows, key=lambda row: len(row.messages))]


def calls_of(row):
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in row["messages"][-1].get("tool_calls", ())
    ]


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


def turn(number, *, with_tools):
    if not with_tools:
        return {"question": f"q{number}", "answer": f"„a{number}“"}
    call = dspy.ToolCalls.from_dict_list([{"id": f"c{number}", "name": "search", "args": {"query": f"ä{number}"}}])
    results = dspy.ToolCallResults.from_tool_calls_and_values(call, [{"found": [number]}])
    return {"question": f"q{number}", "calls": call.model_copy(update={"tool_call_results": results})}


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


# Whole compiles


class ToolServer(FakeOpenAI):
    """Plans with native tool calls, right after advice or training, and answers from what was found."""

    def __init__(self):
        super().__init__(["succeeded"])

    def chat(self, body):
        answered = super().chat(body)
        message, text = answered["choices"][0]["message"], json.dumps(body["messages"], ensure_ascii=False)
        if body.get("tools"):
            town = "Zürich" if "[[ ## feedback" in text or body["model"].startswith("ft:") else "Bern"
            arguments = json.dumps({"query": town, "options": {"deep": [1, None]}})
            call = {"id": f"call_{len(self.chats)}", "type": "function"}
            called = [{**call, "function": {"name": "search", "arguments": arguments}}]
            message |= {"content": None, "tool_calls": called}
        elif "`[[ ## feedback ## ]]`" in text:
            message["content"] = chat_reply(feedback="Search for the largest town.")
        else:
            message["content"] = chat_reply(answer="right" if "Zürich" in text else "wrong")
        return answered


class Desk(dspy.Module):
    def __init__(self):
        super().__init__()
        self.planner = planner()
        self.writer = dspy.Predict("question, found -> answer")

    def forward(self, question):
        planned = self.planner(question=question, tools=TOOLS).calls
        found = [call.execute(TOOLS) for call in planned.tool_calls]
        return self.writer(question=question, found="; ".join(found))


def is_right(example, prediction, trace=None):
    return prediction.answer == "right"


EXAMPLES = [dspy.Example(question=f"Where, {number}?").with_inputs("question") for number in range(2)]


def compiled_by(run_dir, lm, **settings):
    program = Desk()
    program.set_lm(lm)
    settings = {"iterations": 1, "collect": Collect(samples=1), "num_threads": 1, "augmenter": None, **settings}
    return SiriuS(is_right, run_dir=run_dir, **settings).compile(program, trainset=EXAMPLES, valset=EXAMPLES)


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    """A compile whose planner calls the wrong tool until it is advised, at a server with OpenAI's API."""
    run_dir, fake = tmp_path_factory.mktemp("native"), ToolServer()
    with dspy.context(adapter=ADAPTER), fake.serving() as url:
        compiled = compiled_by(run_dir, lm_at(url), augmenter=CriticAugmenter(), trainer=HostedTrainer())
        yield run_dir, fake, compiled


def test_a_hosted_agent_is_trained_on_repaired_calls_under_the_prompt_that_was_sent(repaired):
    run_dir, fake, _ = repaired
    (text,) = [text for text in fake.files.values() if b'"tools"' in text]
    asked = [body for body in fake.chats if body.get("tools") and not body["model"].startswith("ft:")]
    sent = [(body["messages"], json.dumps(body["tools"])) for body in asked]
    rows = lines(text)
    assert len(rows) == 2
    for row in rows:
        assert (row["messages"][:-1], json.dumps(row["tools"])) in sent
        assert calls_of(row) == [("search", {"query": "Zürich", "options": {"deep": [1, None]}})]
        assert "feedback" not in json.dumps(row)
    assert lines((run_dir / "training" / "iteration-1" / "planner.jsonl").read_bytes()) == rows


def test_the_fine_tuned_agent_still_calls_tools_natively(repaired):
    _, fake, compiled = repaired
    assert compiled(question="New?").answer == "right"
    asked = fake.chats[-2]
    assert asked["model"].startswith("ft:")
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["search", "now"]


def test_a_saved_agent_still_calls_tools_natively(tmp_path):
    program = Desk()
    program.set_lm(retrained(dspy.LM("openai/gpt-4o-mini"), "openai/ft:gpt-4o-mini:org::1"))
    save(program, tmp_path / "checkpoint")
    loaded = load(tmp_path / "checkpoint", program=Desk).planner.lm
    assert (loaded.model, loaded.supports_function_calling) == ("openai/ft:gpt-4o-mini:org::1", True)
    assert loaded.copy(temperature=1.0).supports_function_calling


def test_an_lm_that_calls_no_tools_is_not_said_to(tmp_path):
    for lm, adapter in ((dspy.LM("openai/unknown"), ADAPTER), (dspy.LM("openai/gpt-4o-mini"), dspy.ChatAdapter())):
        with dspy.context(adapter=adapter):
            assert not retrained(lm, "openai/ft:x:org::1").supports_function_calling


def test_a_compile_that_has_ended_is_taken_up_without_asking_again(repaired):
    run_dir, fake, compiled = repaired
    before = len(fake.chats)
    url = compiled.planner.lm.kwargs["api_base"]
    again = compiled_by(run_dir, lm_at(url), augmenter=CriticAugmenter(), trainer=HostedTrainer())
    assert again.planner.lm.supports_function_calling
    assert len(fake.chats) == before
    with ExperienceLibrary(run_dir / "library.sqlite") as library:
        files = sorted((run_dir / "training").glob("iteration-1/*[!s].jsonl"))
        assert [library.verify_rows(file) for file in files if "sources" not in file.name] == [[], []]


@pytest.mark.parametrize("to", ["sft", "dpo", "kto", "sdpo"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_exports_have_tools_and_calls_as_templates_expect_them(repaired, tmp_path, to, ending):
    import datasets

    export, path = open_export(repaired[0]), tmp_path / f"{to}.{ending}"
    with export.library:
        done = getattr(export, f"to_{to}")(path)
    kind = {"jsonl": "json"}.get(ending, ending)
    found = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    rows = [row for row in found if row["agent"] == "planner"]
    assert len(rows) == done.rows["planner"] == {"kto": 4}.get(to, 2)
    for row in rows:
        assert [tool["function"]["name"] for tool in json.loads(row["tools"])] == ["search", "now"]
        for column, town in (("chosen", "Zürich"), ("rejected", "Bern")) if to == "dpo" else ():
            (reply,) = row[column]
            assert reply["tool_calls"][0]["function"]["arguments"]["query"] == town
        if to in ("sft", "kto"):
            (reply,) = row["completion"]
            right = row.get("label", True)
            called = reply["tool_calls"][0]["function"]["arguments"]
            assert called == {"query": "Zürich" if right else "Bern", "options": {"deep": [1, None]}}


# Repair


def test_the_guard_reads_the_arguments_of_tool_calls_and_not_their_ids():
    (step,) = run_of(planner(), Watched(["", ("12", "search", {"query": "Bern"})]), question="?", tools=TOOLS).steps

    def leak(*calls):
        (edited,) = run_of(planner(), Watched(["", *calls]), question="?", tools=TOOLS).steps
        return LeakGuard().leak(edited.outputs, step, {"answer": "7"}, answers=False)

    assert "'7'" in leak(("a", "search", {"query": "x", "options": {"deep": [{"n": 7}]}}))
    assert leak(("7", "search", {"query": "x"})) == ""


def test_a_repaired_answer_with_other_ids_is_the_same_answer(tmp_path):
    class Stubborn(ToolServer):
        def chat(self, body):
            answered = super().chat(body)
            call = (answered["choices"][0]["message"].get("tool_calls") or [{}])[0]
            if call:
                call["function"]["arguments"] = '{"query": "Bern"}'
            return answered

    with Stubborn().serving() as url, pytest.raises(NoSuccessError):
        compiled_by(tmp_path, lm_at(url), augmenter=CriticAugmenter(), trainer=HostedTrainer())
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        verdicts = [attempt.verdict for repair in library.repairs() for attempt in repair.attempts]
    assert verdicts.count("unchanged") >= 2
    assert "repaired" not in verdicts


# Refusals


def refusal(tmp_path, program=None, examples=EXAMPLES, **settings):
    """Return why a compile is refused, and check that nothing was asked before."""
    lm = Watched()
    program = program or Desk()
    program.set_lm(lm)
    with pytest.raises(UnpreparedProgramError) as refused:
        SiriuS(is_right, run_dir=tmp_path, **settings).compile(program, trainset=examples, valset=examples)
    assert lm.sent == []
    return str(refused.value)


def test_dspys_own_provider_takes_no_tool_calls(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    program = Desk()
    program.set_lm(dspy.LM("openai/gpt-4o-mini"))
    optimizer = SiriuS(is_right, run_dir=tmp_path, trainer=ProviderTrainer())
    with pytest.raises(UnpreparedProgramError, match=r"'planner'.*'calls'.*use_native_function_calling=False.*frozen"):
        optimizer.compile(program, trainset=EXAMPLES, valset=EXAMPLES)


def test_a_history_with_tool_calls_is_refused_like_an_agent_that_calls(tmp_path):
    program = dspy.Predict("question, history: dspy.History -> answer")
    examples = [
        dspy.Example(question="?", history=dspy.History(messages=[turn(0, with_tools=with_tools)])).with_inputs(
            "question", "history"
        )
        for with_tools in (True, False)
    ]
    assert "'self' has native tool calls in its field 'history'" in refusal(tmp_path, program, examples)
    parts = ({"self": ["self"]}, {"self": Watched()}, ADAPTER, ProviderTrainer())
    check_tools(program, examples[1:], *parts)  # a conversation of texts is fine


def test_a_provider_can_declare_that_it_trains_on_tool_calls():
    for declared in (True, lambda model: model == "scripted/lm"):
        lm = Watched()
        lm.provider.trains_on_tools = declared
        assert ProviderTrainer().trains_on_tools(lm)
    assert not ProviderTrainer().trains_on_tools(lm.copy(model="scripted/other"))


def test_tools_that_must_always_be_called_are_refused(tmp_path):
    program = Desk()
    program.planner.config = {"tool_choice": "required"}
    assert "`tool_choice` of 'planner' is 'required'" in refusal(tmp_path, program, trainer=HostedTrainer())
