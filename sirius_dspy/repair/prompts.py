"""The three prompts of a repair, as DSPy signatures: critique, regenerate, rephrase.

References:
    Section 3.1 and the appendix of SiriuS (arXiv:2502.04780).
"""

from __future__ import annotations

import dspy

ATTEMPT = "earlier_answer"
"""Input field that regeneration adds to an agent's own signature."""
FEEDBACK = "feedback"
"""Input field that regeneration adds to an agent's own signature."""


class Critique(dspy.Signature):
    """Explain to one agent of a team what is wrong in its part of a failed task, and how to do better.

    You know the correct answer. Guide the agent, but never state the correct answer itself.
    """

    task: str = dspy.InputField(desc="what the team was asked")
    team: str = dspy.InputField(desc="what each agent wrote, in order")
    agent: str = dspy.InputField(desc="comment on this agent only")
    agent_inputs: str = dspy.InputField(desc="what this agent was given")
    agent_answer: str = dspy.InputField(desc="what this agent wrote")
    correct_answer: str = dspy.InputField(desc="known only to you")  # last: small models heed what they read last
    feedback: str = dspy.OutputField(desc="short advice for this agent")


class Rephrase(dspy.Signature):
    """Rewrite the text so that it reads like a first, direct answer.

    Keep every fact. Leave out any mention of feedback, advice, corrections, mistakes or earlier answers.
    """

    task: str = dspy.InputField(desc="what the text answers")
    text: str = dspy.InputField()
    rewritten: str = dspy.OutputField()


def regeneration_of(signature: type[dspy.Signature], *, show_earlier: bool = True) -> type[dspy.Signature]:
    """An agent's own signature with its earlier answer and the critic's feedback as further inputs.

    Args:
        signature: The agent's. A field of its own called `feedback` or `earlier_answer` keeps its name; ours get a
            trailing underscore then.
        show_earlier: Whether the earlier answer is among them.
    """
    added = {FEEDBACK: "how to do better; follow it, but do not mention it"}
    if show_earlier:
        added = {ATTEMPT: "what you answered before; it was not good enough"} | added
    extended = signature
    for name, desc in added.items():
        extended = extended.append(free_name(name, signature), dspy.InputField(desc=desc), type_=str)
    return extended


def free_name(name: str, signature: type[dspy.Signature]) -> str:
    """`name`, with underscores behind it until the signature has no such field."""
    while name in signature.fields:
        name += "_"
    return name
