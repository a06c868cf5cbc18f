"""Pairs of a rejected and a chosen reply to one prompt, from failed runs and their repairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sirius_dspy.library.replies import WriteReply, answered_reply, any_reply, sent_prompt
from sirius_dspy.library.trl_rows import trl_messages, trl_tools
from sirius_dspy.running.prompt import Message, SentPrompt, row_id
from sirius_dspy.trajectory import IsOwn, Step, Trajectory


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A step of a failed run and the same step of the run that repaired it: one prompt, two replies."""

    predictor: str
    prompt: SentPrompt
    chosen: Message
    """What the agent replied in the repaired run."""
    rejected: Message
    """What the agent replied in the failed run; if that did not parse, as it was written."""
    trajectory: str
    """Id of the repaired run."""
    example_key: str

    @property
    def row(self) -> dict[str, Any]:
        """The pair in TRL's conversational format."""
        return {
            "prompt": trl_messages(self.prompt.messages),
            "chosen": trl_messages([self.chosen]),
            "rejected": trl_messages([self.rejected]),
            **trl_tools(self.prompt),
        }


def pair_steps(
    failed: Trajectory, repaired: Trajectory, write: WriteReply, is_own: IsOwn
) -> Iterator[tuple[str, PreferencePair | None, str]]:
    """Yield the predictor of each taught step of the repaired run, and its pair, or `None` and the reason.

    A pair needs the same prompt in both runs. So the repaired step has one, and those after it that read other inputs
    in the repaired run have none.
    """
    for step in repaired.taught_steps:
        pair, reason = _pair(failed, repaired, step, write, is_own)
        yield step.predictor, pair, reason


def _pair(
    failed: Trajectory, repaired: Trajectory, step: Step, write: WriteReply, is_own: IsOwn
) -> tuple[PreferencePair | None, str]:
    earlier = _same_step(failed, step)
    if earlier is None:
        return None, "has another prompt than in the failed run"
    if not (is_own(repaired, step) and is_own(failed, earlier)):
        return None, "answered by another LM"
    prompt, reason = sent_prompt(step)
    if prompt is None:
        return None, reason
    chosen, reason = answered_reply(step, write)
    if chosen is None:
        return None, reason
    rejected, reason = any_reply(earlier, write)
    if rejected is None:
        return None, f"failed run: {reason}"
    if _said(chosen) == _said(rejected):
        return None, "same reply in both runs"
    return PreferencePair(step.predictor, prompt, chosen, rejected, repaired.id, repaired.example_key), ""


def _same_step(failed: Trajectory, step: Step) -> Step | None:
    """Return the step of the failed run with the same predictor and prompt, of several the one with its occurrence."""
    asked = [other for other in failed.steps if (other.predictor, other.prompt) == (step.predictor, step.prompt)]
    return min(asked, key=lambda other: other.occurrence != step.occurrence, default=None)


def _said(reply: Message) -> str:
    """Return the content hash of a reply, without what means nothing: space around it, and the ids of tool calls."""
    return row_id({"messages": [{**reply, "content": (reply["content"] or "").strip()}]})
