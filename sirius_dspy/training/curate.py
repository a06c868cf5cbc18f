"""Turns successful runs into training sets: chooses the steps, their agents and their prompts.

The prompt of a row is the recorded request without its demonstrations; it is not rendered again. Its completion is the
reply that the program's adapter writes for the recorded outputs. A row is kept only if this reply parses back to them.

Two kinds of steps have no such request: those of a teacher with another signature, and those of libraries that earlier
versions wrote. Their prompt is the one that the program sends when it is called with their inputs.

References:
    "Standard SFT on C_t^(n)" in Algorithm 1 of SiriuS (arXiv:2502.04780). The released code trained repaired steps with
    prompts that inference never uses; the check makes that impossible.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import dspy

from sirius_dspy import checks
from sirius_dspy.files import write_lines
from sirius_dspy.plain import text_digest
from sirius_dspy.running.prompt import Message, Messages, SentPrompt, row_id
from sirius_dspy.training.caps import cap_groups, draw_evenly
from sirius_dspy.training.pool import SPARE, RowPool, open_pools
from sirius_dspy.training.prompts import PromptProbe
from sirius_dspy.training.weigh import PassRates, PassRateWeights
from sirius_dspy.trajectory import IsOwn, Step, Trajectory, every_step


@dataclass(frozen=True)
class Row:
    """One training example of one agent."""

    messages: Messages
    """Chat messages; the last one is the completion to learn."""
    predictor: str
    trajectory: str
    """Id of the run that the row comes from."""
    example_key: str
    request: str = ""
    """Content hash of the prompt in the step of the run; empty if it was not sent in that run."""
    weight: float = 1.0
    """How much the row counts in training, beside rows of weight 1."""
    tools: Messages = ()
    """Schemas of the tools that were offered natively, in OpenAI's format; empty if there were none."""
    parallel_tool_calls: bool | None = None
    """Whether the LM was to call several tools at once; `None` if the request did not say."""

    @property
    def id(self) -> str:
        """The content hash of the messages and the tools; ids of the tool calls in the completion do not count."""
        return row_id(self.chat)

    @property
    def chat(self) -> dict[str, Any]:
        """The row in OpenAI's format: `messages` and, where tools were offered natively, `tools`."""
        settings = SentPrompt(self.messages[:-1], self.tools, self.parallel_tool_calls).settings
        return {"messages": [dict(message) for message in self.messages], **settings}


class Appraisal(NamedTuple):
    """What a step is worth as a training row."""

    refused: str = ""
    """Why the step is left out; it is counted under this text in `dropped`. Empty keeps it."""
    weight: float = 1.0
    """How much its row counts in training; multiplied with what else weighs it."""


Appraise = Callable[[Trajectory, Step], Appraisal]
"""Appraises one step of a run."""


def appraise_equally(trajectory: Trajectory, step: Step) -> Appraisal:
    """The `Appraise` that keeps every step with the same weight."""
    return Appraisal()


@dataclass(frozen=True)
class TrainingSet:
    """The rows of one agent, and the counts of steps that were left out."""

    agent: str
    rows: tuple[Row, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason to the number of steps that were left out."""

    @property
    def chat(self) -> list[dict[str, Any]]:
        """Return the rows in the format of OpenAI's fine-tuning API, TRL and `lm.finetune`.

        A row whose weight is not 1 has its `weight` beside the `messages`.
        """
        return [row.chat if row.weight == 1 else {**row.chat, "weight": row.weight} for row in self.rows]

    def write(self, path: Path) -> None:
        """Write OpenAI chat JSONL, and beside it `NAME.sources.jsonl` with the run of each line.

        There are two files because OpenAI refuses rows with anything but `messages` and `tools`.
        """
        sources = (
            {
                "row": row.id,
                "trajectory": row.trajectory,
                "predictor": row.predictor,
                "example": row.example_key,
                "request": row.request,
                "weight": row.weight,
            }
            for row in self.rows
        )
        write_lines(path, _json_lines(row.chat for row in self.rows))
        write_lines(path.with_suffix(".sources.jsonl"), _json_lines(sources))


@dataclass(frozen=True)
class Curator:
    """Turns successful runs into training sets.

    Attributes:
        max_per_example: Maximum number of rows per predictor and example. Several successful samples of one example
            teach variety, but easy examples must not crowd out the hard ones.
        max_rows: Maximum number of rows per predictor, drawn with the seed; `None` keeps all.
        cumulative: Whether to train on the successful runs of all iterations so far, so that rows from earlier repairs
            are kept. By default, only runs of the current iteration are used. The paper does not specify this.
        max_per_run: Maximum number of rows per predictor and run, so that an agent that is called ten times in a run
            does not fill the caps with one run; `None` keeps all.
        max_per_agent: Maximum number of rows per agent, drawn evenly over its predictors and examples, so that a
            predictor that is called often does not crowd out others that share its weights; `None` keeps all.
        weights: Weighs the rows, such as `PassRateWeights()`; `None` gives each row the weight 1. Weights reach only
            providers that can use them, as that of `LocalLM` can.

    Rows over `max_rows` or `max_per_agent` are left out evenly: each example keeps one row before any keeps a second.
    All limits but `max_per_agent` apply per predictor and not per agent, so that predictors that share weights are
    trained on the same rows as predictors with their own weights.

    While runs are read, at most `8 * max_per_example` rows per predictor and example are in memory, drawn with the
    seed. With `max_per_run`, all rows are.
    """

    max_per_example: int = 4
    max_rows: int | None = None
    cumulative: bool = False
    max_per_run: int | None = None
    max_per_agent: int | None = None
    weights: PassRateWeights | None = None

    def check(self) -> None:
        """Check the settings; a subclass also checks its own.

        Raises:
            SettingsError: A setting is of the wrong kind or out of its range.
        """
        kinds = {
            "max_per_example": checks.whole(1),
            "max_rows": checks.optional(checks.whole(1)),
            "cumulative": checks.FLAG,
            "max_per_run": checks.optional(checks.whole(1)),
            "max_per_agent": checks.optional(checks.whole(1)),
            "weights": checks.optional(checks.instance(PassRateWeights, hint=", such as `PassRateWeights()`")),
        }
        checks.check(type(self).__name__, vars(self), kinds)
        if self.weights is not None:
            self.weights.check()

    def most_rows(self, num_predictors: int, num_examples: int) -> int:
        """Return the maximum number of rows of an agent with so many predictors, for plans."""
        most = num_examples * self.max_per_example
        rows = num_predictors * (most if self.max_rows is None else min(most, self.max_rows))
        return rows if self.max_per_agent is None else min(rows, self.max_per_agent)

    def refuse(self, row: Row) -> str:
        """Say why a row is not to be trained on; override it to choose rows. An empty text keeps the row, as here.

        Refused rows are counted under their reason in `dropped`, and do not use up the caps.
        """
        return ""

    def balance(self, program: dspy.Module, rows: Sequence[Row]) -> Sequence[Row]:
        """Choose among the rows of one predictor before `max_rows` does; override it to keep kinds of rows in balance.

        Args:
            program: The program that is trained.
            rows: In a random order, without those over the caps per run and example.

        Returns:
            Some of the rows, in their order; here all of them.
        """
        return rows

    def curate(
        self,
        program: dspy.Module,
        trajectories: Iterable[Trajectory],
        agents: Mapping[str, Sequence[str]],
        *,
        threshold: float,
        seed: int = 0,
        is_own: IsOwn = every_step,
        appraise: Appraise = appraise_equally,
    ) -> dict[str, TrainingSet]:
        """Select the rows of each agent.

        Args:
            program: The program whose signatures, together with DSPy's adapter, determine the prompts.
            trajectories: Scored runs, successful or not; they are read once, in any order.
            agents: Agent name to the predictors that share its weights.
            threshold: A step is used if its run finished and the reward of its agent is at least this value.
            seed: Seed of the order of the rows, and of the choice if there are too many.
            is_own: Returns whether an agent's LM, or its teacher, answered a step. Steps of other LMs are not used.
            appraise: Returns what a step is worth; asked only for steps that would become a row.
        """
        probe = PromptProbe(program)
        agent_of = {predictor: agent for agent, predictors in agents.items() for predictor in predictors}
        dropped: dict[str, Counter[str]] = {agent: Counter() for agent in agents}
        rates = PassRates(agent_of, threshold)
        sets = {}
        with open_pools(agent_of, self._most_held, seed) as pools:
            for trajectory, step in _steps(_counted(trajectories, rates)):
                agent = agent_of.get(step.predictor)
                if agent is None or not trajectory.succeeded_for(agent, step.predictor, threshold=threshold):
                    continue
                if not is_own(trajectory, step):
                    dropped[agent]["answered by another LM"] += 1
                    continue
                row, reason = self._appraised(probe, trajectory, step, appraise)
                if row is None:
                    dropped[agent][reason] += 1
                    continue
                dropped[agent]["duplicate"] += pools[step.predictor].add(row)
            for agent, predictors in agents.items():
                kept = [self._kept(program, pools[predictor], seed, dropped[agent]) for predictor in predictors]
                drawn = self._cap_agent(shuffle_rows(kept, seed), dropped[agent])
                weighed = drawn if self.weights is None else self.weights.weigh(drawn, rates)
                sets[agent] = TrainingSet(agent, weighed, dict(+dropped[agent]))
        return sets

    def _appraised(
        self, probe: PromptProbe, trajectory: Trajectory, step: Step, appraise: Appraise
    ) -> tuple[Row | None, str]:
        """Return a step as a row with its weight, or `None` and the reason why it is left out."""
        row, reason = _row(probe, trajectory, step)
        if row is None or (reason := self.refuse(row)):
            return None, reason
        appraisal = appraise(trajectory, step)
        if appraisal.refused:
            return None, appraisal.refused
        return replace(row, weight=row.weight * appraisal.weight), ""

    @property
    def _most_held(self) -> int | None:
        """Rows of an example that are held in memory; all of them where the runs have a limit, which comes first."""
        return SPARE * self.max_per_example if self.max_per_run is None else None

    def _cap_agent(self, rows: Sequence[Row], dropped: Counter[str]) -> tuple[Row, ...]:
        kept = draw_evenly(rows, self.max_per_agent, lambda row: (row.predictor, row.example_key))
        dropped["over the cap per agent"] += len(rows) - len(kept)
        return tuple(kept)

    def _kept(self, program: dspy.Module, pool: RowPool, seed: int, dropped: Counter[str]) -> Sequence[Row]:
        """Shuffle the rows, independently of the order in which threads finished, and apply the limits."""
        rows = [pool.rows[id] for id in sorted(pool.rows)]
        random.Random(seed).shuffle(rows)
        of_runs = cap_groups(rows, self.max_per_run, lambda row: row.trajectory)
        of_examples = cap_groups(of_runs, self.max_per_example, lambda row: row.example_key)
        balanced = self.balance(program, of_examples)
        kept = draw_evenly(balanced, self.max_rows, lambda row: row.example_key)
        dropped["over the cap per run"] += len(rows) - len(of_runs)
        dropped["over the cap per example"] += len(of_runs) - len(of_examples) + pool.num_left_out
        dropped["out of balance"] += len(of_examples) - len(balanced)
        dropped["over the cap per predictor"] += len(balanced) - len(kept)
        return kept


def shuffle_rows(parts: Sequence[Sequence[Row]], seed: int) -> tuple[Row, ...]:
    """Mix rows from several sources; those of a single one are in a random order already."""
    rows = [row for part in parts for row in part]
    if len(parts) > 1:
        random.Random(seed).shuffle(rows)
    return tuple(rows)


def _counted(trajectories: Iterable[Trajectory], rates: PassRates) -> Iterator[Trajectory]:
    for trajectory in trajectories:
        rates.add(trajectory)
        yield trajectory


def _steps(trajectories: Iterable[Trajectory]) -> Iterator[tuple[Trajectory, Step]]:
    return ((trajectory, step) for trajectory in trajectories for step in trajectory.taught_steps)


def _row(probe: PromptProbe, trajectory: Trajectory, step: Step) -> tuple[Row | None, str]:
    """Return the step as a row, or `None` and the reason why it is left out."""
    if step.outputs is None:
        return None, "the call failed"
    if step.was_cut:
        return None, "cut off at the token limit"
    if "hint_" in step.inputs:  # dspy.Refine adds its advice, which does not exist at inference
        return None, "has a hint of dspy.Refine"
    prompt, reason = _prompt(probe, trajectory, step)
    if prompt is None:
        return None, reason
    reply, reason = probe.reply(step.predictor, step.inputs, step.outputs, is_native=bool(prompt.tools))
    if reply is None:
        return None, reason
    request = text_digest(prompt.text)
    row = Row(
        messages=(*_share_system(prompt.messages), reply),
        predictor=step.predictor,
        trajectory=trajectory.id,
        example_key=trajectory.example_key,
        request=request if request == step.request else "",
        tools=prompt.tools,
        parallel_tool_calls=prompt.parallel_tool_calls,
    )
    return row, ""


def _prompt(probe: PromptProbe, trajectory: Trajectory, step: Step) -> tuple[SentPrompt | None, str]:
    """Return the recorded prompt; for runs of other programs, the prompt that this one sends for the same inputs."""
    is_own = trajectory.program == probe.program_id
    if step.prompt is not None and (is_own or step.signature == probe.signature_id(step.predictor)):
        return SentPrompt.read(step.prompt), ""
    if step.signature and is_own:
        return None, "what was sent cannot be a training prompt"
    return probe.prompt(step.predictor, step.inputs)


def _share_system(messages: Messages) -> Sequence[Message]:
    """Let all rows of a predictor hold the same system prompt, often their longest text."""
    return [
        {**message, "content": sys.intern(message["content"])}
        if message.get("role") == "system" and type(message.get("content")) is str
        else message
        for message in messages
    ]


def _json_lines(records: Iterable[Any]) -> Iterator[str]:
    return (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
