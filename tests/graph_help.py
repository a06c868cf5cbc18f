"""The graph that the tests draw and run: three agents, and an LM that answers for them."""

from __future__ import annotations

import dspy

from sirius_dspy import Agent, AgentGraph
from sirius_dspy.testing import ScriptedLM, chat_reply
from sirius_dspy.trajectory import Trajectory

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)
QUESTION = dspy.Example(question="How far does it fall in two seconds?", answer="20 m").with_inputs("question")


def team(**agents):
    return {
        "physicist": Agent(dspy.Predict("question -> laws"), role="names the laws"),
        "mathematician": dspy.Predict("question, laws -> solution"),
        "summarizer": dspy.ChainOfThought("question, laws, solution -> answer"),
        **agents,
    }


def chain():
    return AgentGraph("question -> answer", team())


def answers(prompt):
    if prompt.asks_for("laws"):
        return chat_reply(laws="free fall: s = g t^2 / 2")
    if prompt.asks_for("solution"):
        return chat_reply(solution=f"by {prompt.field('laws')} it is 20 m")
    if prompt.asks_for("answer"):
        return chat_reply(reasoning="as computed", answer="20 m" if "20 m" in prompt.field("solution") else "unknown")
    raise ValueError(prompt.text)


def answering(graph, script=answers, **settings):
    lm = ScriptedLM(script, **settings)
    graph.set_lm(lm)
    return lm


def trajectory_of(recording):
    return Trajectory("key", recording.steps, None, 0.0)
