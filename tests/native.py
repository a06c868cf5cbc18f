"""Programs whose agents call tools natively, and what answers them."""

from __future__ import annotations

import json

import dspy
from dspy import lm15

from sirius_dspy import Collect, SiriuS
from sirius_dspy.program import program_fingerprint
from sirius_dspy.running.record import record
from sirius_dspy.running.recording import Sampling
from sirius_dspy.testing import chat_reply
from sirius_dspy.testing.library import make_run
from sirius_dspy.training.curate import Curator
from sirius_dspy.trajectory import Trajectory
from tests.openai_server import FakeOpenAI

ADAPTER = dspy.ChatAdapter(use_native_function_calling=True, use_json_adapter_fallback=False)


def search(query: str, options: dict | None = None) -> str:
    """Look something up."""
    return f"about {query}"


def now() -> str:
    """Tell the time."""
    return "noon"


TOOLS = [dspy.Tool(search), dspy.Tool(now)]


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


def turn(number, *, with_tools):
    if not with_tools:
        return {"question": f"q{number}", "answer": f"„a{number}“"}
    call = dspy.ToolCalls.from_dict_list([{"id": f"c{number}", "name": "search", "args": {"query": f"ä{number}"}}])
    results = dspy.ToolCallResults.from_tool_calls_and_values(call, [{"found": [number]}])
    return {"question": f"q{number}", "calls": call.model_copy(update={"tool_call_results": results})}


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


def compiled_by(run_dir, lm=None, program=None, **settings):
    if program is None:
        program = Desk()
        program.set_lm(lm)
    settings = {"iterations": 1, "collect": Collect(samples=1), "num_threads": 1, "augmenter": None, **settings}
    return SiriuS(is_right, run_dir=run_dir, **settings).compile(program, trainset=EXAMPLES, valset=EXAMPLES)


def lines(text):
    return [json.loads(line) for line in text.splitlines()]
