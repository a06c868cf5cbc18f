"""The steps of a library as data sets of TRL's trainers, one agent's rows apart from another's by a column."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy.adapters.base import Adapter

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.preferences import pair_steps
from sirius_dspy.library.replies import ReplyWriter, answered_reply, any_reply, sent_prompt
from sirius_dspy.library.tables import check_ending, write_table
from sirius_dspy.library.trl_rows import trl_messages, trl_tools
from sirius_dspy.plain import DigestSet, digest
from sirius_dspy.running.prompt import Message
from sirius_dspy.trajectory import Attempt, Origin, Step, Trajectory

Row = dict[str, Any]

Found = tuple[str, Row | None, str]
"""A predictor, and a row of it, or `None` and the reason why there is none."""

ABOUT = ("agent", "example", "trajectory")
"""Columns of every export besides those of the trainer, which ignores them: the agent, the key of the example, and the
id of the run."""

TOOLS = "tools"
"""Column of the tools that were offered natively, as JSON; null where there were none."""

ORIGINS: tuple[Origin, ...] = ("rollout", "repair")
"""Validation runs are not for training."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    path: Path
    rows: Mapping[str, int]
    """Agent name to the number of its rows."""
    left_out: Mapping[str, Mapping[str, int]]
    """Agent name to the reason to the number of steps that became no row."""

    @property
    def num_rows(self) -> int:
        """The number of all rows."""
        return sum(self.rows.values())


@dataclass(frozen=True)
class TRLExport:
    """Writes the experience of a library in the formats of TRL's trainers.

    `sirius_dspy.open_export` makes one from the folder of a compile. Prompts are the requests that were sent, without
    demonstrations, and help that was given in a repair never stands in them. Replies are written by the adapter. Rows
    are streamed, so memory does not grow with the library. The columns `agent`, `example` and `trajectory` come with
    those of the trainer: each agent is trained on its own rows, `dataset.filter(lambda row: row["agent"] == "solver")`.
    If the adapter calls tools natively, there is also the column `tools`, and messages hold tool calls and results.

    Attributes:
        library: Where the runs are.
        agents: Agent name to the predictors that share its weights; steps of others are not exported.
        adapter: The adapter of the program, which writes the replies.
        threshold: Minimum reward of a success.
        run: Id of a compile; `None` for all.
        iteration: Iteration of a compile; `None` for all.
        lms: Agent name to the ids of the LMs that the agent has had; steps that another LM answered are left out.
            `None` keeps the steps of all LMs.

    References:
        The dataset formats of TRL 1.16: prompt-completion, preference, unpaired preference, and that of its
        `SDPOTrainer`.
    """

    library: ExperienceLibrary
    agents: Mapping[str, Sequence[str]]
    adapter: Adapter
    threshold: float = 1.0
    run: str | None = None
    iteration: int | None = None
    lms: Mapping[str, Collection[str]] | None = None

    def to_sft(self, path: str | Path) -> Exported:
        """Write the steps of successful runs for `SFTTrainer`: `prompt` and `completion`.

        Args:
            path: A file ending in `.jsonl` or `.parquet`, which appears when it is complete.

        Raises:
            LibraryError: The file has another ending, or the library cannot be read.
        """
        return self._write(path, ("prompt", "completion"), self._successes())

    def to_dpo(self, path: str | Path) -> Exported:
        """Write pairs of a repaired and a failed step for `DPOTrainer`: `prompt`, `chosen` and `rejected`.

        Args:
            path: See `to_sft`.

        Raises:
            LibraryError: See `to_sft`.
        """
        return self._write(path, ("prompt", "chosen", "rejected"), self._pairs())

    def to_kto(self, path: str | Path) -> Exported:
        """Write good and bad steps for `KTOTrainer`: `prompt`, `completion` and `label`.

        Good are the steps of successful runs. Bad are those whose repair was a success, and replies that could not be
        parsed; other steps of failed runs may have been right.

        Args:
            path: See `to_sft`.

        Raises:
            LibraryError: See `to_sft`.
        """
        found = (self._labeled(self._successes(), label=True), self._labeled(self._mistakes(), label=False))
        return self._write(path, ("prompt", "completion", "label"), (item for part in found for item in part))

    def to_sdpo(self, path: str | Path) -> Exported:
        """Write failed steps for `SDPOTrainer`: `prompt` and `privileged_context`, the feedback that led to a repair.

        Train with `SDPOConfig(include_environment_feedback=True)` and a reward function; the column `example` is the
        key of the example, for `ExperienceLibrary.example`.

        Args:
            path: See `to_sft`.

        Raises:
            LibraryError: See `to_sft`.
        """
        return self._write(path, ("prompt", "privileged_context"), self._advised())

    # Rows

    def _successes(self) -> Iterator[Found]:
        write = ReplyWriter(self.adapter)
        for run in self.library.trajectories(run=self.run, iteration=self.iteration, origin=ORIGINS):
            for step in run.taught_steps:
                agent = self._agent_of(step.predictor)
                if agent is not None and run.succeeded_for(agent, step.predictor, threshold=self.threshold):
                    yield self._completion(run, step, *answered_reply(step, write))

    def _pairs(self) -> Iterator[Found]:
        write = ReplyWriter(self.adapter)
        for failed, repaired in self._repaired():
            for predictor, pair, reason in pair_steps(failed, repaired, write, self._is_own):
                row = None if pair is None else {**pair.row, **_about(repaired)}
                yield predictor, row, reason

    def _mistakes(self) -> Iterator[Found]:
        """Yield rejected replies of pairs, and replies that could not be parsed."""
        write = ReplyWriter(self.adapter)
        for predictor, row, reason in self._pairs():
            yield predictor, row and {**row, "completion": row["rejected"]}, reason
        failed = {"run": self.run, "iteration": self.iteration, "below": self.threshold}
        for run in self.library.trajectories(origin=ORIGINS, **failed):  # type: ignore[arg-type]  # a TypedDict
            for step in run.taught_steps:
                if step.failure is not None and step.failure.completion:
                    yield self._completion(run, step, *any_reply(step, write))

    def _advised(self) -> Iterator[Found]:
        for repair in self.library.repairs(run=self.run, iteration=self.iteration):
            for attempt in repair.attempts:
                if attempt.verdict == "repaired":  # it ends the repair
                    yield self._advice(self.library.get(repair.parent), attempt)

    def _repaired(self) -> Iterator[tuple[Trajectory, Trajectory]]:
        return self.library.pairs(threshold=self.threshold, run=self.run, iteration=self.iteration)

    def _completion(self, run: Trajectory, step: Step, reply: Message | None, reason: str) -> Found:
        if not self._is_own(run, step):
            return step.predictor, None, "answered by another LM"
        prompt, no_prompt = sent_prompt(step)
        if prompt is None or reply is None:
            return step.predictor, None, no_prompt or reason
        row = {"prompt": trl_messages(prompt.messages), "completion": trl_messages([reply]), **trl_tools(prompt)}
        return step.predictor, {**row, **_about(run)}, ""

    def _advice(self, failed: Trajectory, attempt: Attempt) -> Found:
        """Return advice under the prompt of the run that it led to: earlier edits may have changed what was asked."""
        run = failed if attempt.trajectory is None else self.library.get(attempt.trajectory)
        step = run.steps[attempt.position]
        if not self._is_own(run, step):
            return step.predictor, None, "answered by another LM"
        prompt, reason = sent_prompt(step)
        if prompt is None:
            return step.predictor, None, reason
        if not attempt.feedback:
            return step.predictor, None, "repaired without feedback"
        row = {"prompt": trl_messages(prompt.messages), "privileged_context": attempt.feedback, **trl_tools(prompt)}
        return step.predictor, {**row, **_about(failed)}, ""

    @staticmethod
    def _labeled(found: Iterable[Found], *, label: bool) -> Iterator[Found]:
        for predictor, row, reason in found:
            yield predictor, row and {**row, "label": label}, reason

    def _agent_of(self, predictor: str) -> str | None:
        return next((agent for agent, names in self.agents.items() if predictor in names), None)

    def _is_own(self, trajectory: Trajectory, step: Step) -> bool:
        agent = self._agent_of(step.predictor)
        return agent is not None and (self.lms is None or step.lm in self.lms.get(agent, ()))

    def _write(self, path: str | Path, columns: Sequence[str], found: Iterable[Found]) -> Exported:
        check_ending(Path(path))
        is_native = bool(getattr(self.adapter, "use_native_function_calling", False))
        columns = (*columns, TOOLS) if is_native else columns
        with DigestSet() as seen:
            rows = _Rows(columns, self._agent_of, seen)
            write_table(Path(path), rows.keep(found), (*columns, *ABOUT))
        left_out = {agent: dict(reasons) for agent, reasons in rows.left_out.items()}
        return Exported(Path(path), {agent: rows.counts[agent] for agent in self.agents}, left_out)


class _Rows:
    """Chooses rows one by one, and counts.

    Args:
        columns: Those of the trainer.
        agent_of: Gives the agent of a predictor; `None` if its steps are not exported.
        seen: Gets the content hashes of all rows.
    """

    def __init__(self, columns: Sequence[str], agent_of: Callable[[str], str | None], seen: DigestSet) -> None:
        self.columns = columns
        self.agent_of = agent_of
        self.counts: Counter[str] = Counter()
        self.left_out: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._seen = seen

    def keep(self, found: Iterable[Found]) -> Iterator[Row]:
        """Yield each row once, with its columns in order."""
        for predictor, row, reason in found:
            agent = self.agent_of(predictor)
            if agent is None:
                continue
            if row is not None and TOOLS in row and TOOLS not in self.columns:
                row, reason = None, "offered tools natively, as the adapter does not"
            if row is None or self._is_known(agent, row):
                self.left_out[agent][reason or "duplicate"] += 1
                continue
            self.counts[agent] += 1
            yield {name: {TOOLS: None, **row, "agent": agent}[name] for name in (*self.columns, *ABOUT)}

    def _is_known(self, agent: str, row: Row) -> bool:
        """Return whether an equal row was there before; one reply is not good and bad, so the label does not count."""
        return not self._seen.add(digest([agent, *(row.get(name) for name in self.columns if name != "label")]))


def _about(run: Trajectory) -> Row:
    return {"example": run.example_key, "trajectory": run.id}
