"""The values everything else passes around: what a program did on an example, and how a failed run was repaired.

All values are frozen and hold plain JSON only (see `sirius_dspy.plain`), so that a trajectory read back from disk
equals the one written, and nothing is ever unpickled. Identity is by content: two equal runs of one rollout have the
same `Trajectory.id`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal

from sirius_dspy.plain import canonical as canonical
from sirius_dspy.plain import digest as digest
from sirius_dspy.plain import example_key as example_key
from sirius_dspy.plain import from_plain as from_plain
from sirius_dspy.plain import text_digest
from sirius_dspy.plain import to_plain as to_plain

Values = Mapping[str, Any]
"""Field name to a plain value; see `sirius_dspy.plain`."""

Source = Literal["live", "recorded", "edited"]
Origin = Literal["rollout", "repair", "validation", "imported", "demonstration", "credit", "confirmation"]
Verdict = Literal["repaired", "failed", "leaked", "unparsed", "unchanged", "diverged", "unconfirmed"]


CUT = frozenset({"length", "max_tokens", "max_output_tokens", "MAX_TOKENS"})
"""Why a reply ended that was cut off at the token limit: in OpenAI's word, which DSPy uses for the providers that it
manages, and in the words of others, which LMs of the user's own may pass on."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What LM calls consumed; answers served from a cache or a recording count nothing."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def to_dict(self) -> dict[str, int]:
        """The numbers by name."""
        return {
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call or a run ended without a result."""

    kind: str
    """Class name of the exception, e.g. `AdapterParseError`."""
    message: str
    completion: str | None = None
    """What the LM wrote, where the failure was that it could not be parsed."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of one predictor."""

    predictor: str
    """Dotted name in the program, e.g. `solver.predict`; in `<...>` if the predictor is not part of the program."""
    occurrence: int
    """How many calls of this predictor had started before, in this run."""
    inputs: Values
    outputs: Values | None
    """`None` if the call failed."""
    lm: str
    """Id of the LM that was asked; of local weights, it holds their content hash."""
    failure: Failure | None = None
    source: Source = "live"
    """`edited` is also a step between two edits of a repair that wrote by itself what an edit would have put there."""
    usage: Usage = Usage()
    seconds: float = 0.0
    started: int = 0
    """Logical clock of the run: a step that ended before this one started may have influenced it, no other."""
    ended: int = 0
    num_demos: int = 0
    """Demonstrations that were in the prompt; training prompts never have any."""
    others: tuple[Values, ...] = ()
    """Further completions, where the predictor asked for `n > 1`."""
    prompt: str | None = None
    """The messages that were sent, as canonical JSON, less the demonstrations: the prompt of a training row. `None` if
    nothing was sent, or what was sent cannot be a training row. Where tools were offered natively, it is an object with
    `messages`, `tools` (a JSON text) and, if it was sent, `parallel_tool_calls`."""
    signature: str = ""
    """Fingerprint of the signature of this very call."""
    finish: str = ""
    """Why the LM stopped writing, in its own word; `length` means that the reply was cut off at the token limit."""

    @property
    def was_cut(self) -> bool:
        """Whether the reply was cut off at the token limit, so that nothing can be learned from how it ends."""
        return self.finish in CUT

    @property
    def request(self) -> str | None:
        """Content hash of the prompt."""
        return None if self.prompt is None else text_digest(self.prompt)

    @property
    def content(self) -> Values:
        """What happened, without when and at what price; concurrent calls get their `occurrence` by chance."""
        failure = self.failure and [self.failure.kind, self.failure.completion]
        content: dict[str, Any] = {
            "predictor": self.predictor,
            "inputs": self.inputs,
            "outputs": [self.outputs, *self.others],
            "failure": failure,
        }
        if self.prompt is not None:  # runs of earlier versions have none, and keep their ids
            content |= {"request": self.request, "signature": self.signature, "finish": self.finish}
        return content

    def to_dict(self) -> dict[str, Any]:
        """JSON form, which shares its values with the step; `step_from_dict` gives an equal one back."""
        record = dict(zip(_STEP_FIELDS, _read_step(self), strict=True))
        record["others"] = list(self.others)
        record["failure"] = self.failure and dataclasses.asdict(self.failure)
        record["usage"] = self.usage.to_dict()
        return record


_STEP_FIELDS = tuple(item.name for item in dataclasses.fields(Step))

_read_step = attrgetter(*_STEP_FIELDS)


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the outputs of one step of a trajectory."""

    position: int
    """Index into `Trajectory.steps`."""
    outputs: Values
    """A value for every output field of the step's signature."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a run comes from."""

    example_key: str
    program: str = ""
    """Fingerprint of the program's structure: predictor names and signatures."""
    run: str = ""
    """The compile that makes it."""
    iteration: int = 0
    sample: int = 0
    """Which try at the example this is, from 0."""
    seed: int = 0
    origin: Origin = "rollout"
    parent: str | None = None
    """Id of the trajectory that a repair starts from."""


@dataclass(frozen=True)
class Trajectory:
    """One run of the program on one example, scored, with its lineage."""

    example_key: str
    steps: tuple[Step, ...]
    """In the order in which the calls started."""
    prediction: Any
    """The program's result as JSON; `None` if the run failed."""
    reward: float
    """The metric's number for the whole run. A run that broke has none, which is no success whatever stands here: 0, or
    less where the threshold of the compile is not above 0."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Rewards of single agents, by agent name, where the metric gives them (a game's winner and loser)."""
    failure: Failure | None = None
    program: str = ""
    """Fingerprint of the program's structure: predictor names and signatures."""
    run: str = ""
    """The compile that made it."""
    iteration: int = 0
    sample: int = 0
    """Which try at the example this is, from 0."""
    seed: int = 0
    origin: Origin = "rollout"
    parent: str | None = None
    """Id of the trajectory that a repair started from."""
    edited: int | None = None
    """Position of the step that a repair replaced."""
    seconds: float = 0.0
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)

    @cached_property
    def id(self) -> str:
        """Content hash; times, prices and the order of concurrent calls do not count."""
        rest = canonical(
            {
                "prediction": self.prediction,
                "reward": self.reward,
                "rewards": dict(self.rewards),
                "failure": self.failure and [self.failure.kind, self.failure.message],
                "lineage": [
                    self.example_key,
                    self.program,
                    self.run,
                    self.iteration,
                    self.sample,
                    self.seed,
                    self.origin,
                    self.parent,
                    self.edited,
                ],
            }
        )
        # The canonical JSON of the whole: `steps` is the last of its keys, and its items are not written twice.
        steps = ",".join(sorted(canonical(step.content) for step in self.steps))
        return text_digest(f'{rest[:-1]},"steps":[{steps}]}}')

    @property
    def repair_lineage(self) -> Lineage:
        """The lineage of a run that repairs this one."""
        return Lineage(
            self.example_key, self.program, self.run, self.iteration, self.sample, self.seed, "repair", self.id
        )

    @property
    def usage(self) -> Usage:
        """Sum over the steps."""
        return sum((step.usage for step in self.steps), Usage())

    @property
    def lms(self) -> dict[str, str]:
        """Predictor name to the id of the LM that answered it last: the agent versions behind this run."""
        return {step.predictor: step.lm for step in self.steps}

    def succeeded(self, threshold: float) -> bool:
        """Whether the run ended with a reward of at least the threshold; one that broke never did."""
        return self.failure is None and self.reward >= threshold

    def succeeded_for(self, agent: str, predictor: str = "", *, threshold: float) -> bool:
        """The same for one agent, or one of its predictors; see `reward_of`."""
        return self.failure is None and self.reward_of(agent, predictor) >= threshold

    def reward_of(self, agent: str, predictor: str = "") -> float:
        """What a step earned: the reward of its predictor, else of its agent, else of the run.

        Args:
            agent: The owner of the weights.
            predictor: One of the agent's; roles that share weights, as both sides of a game may, earn apart.
        """
        return self.rewards.get(predictor, self.rewards.get(agent, self.reward))

    @property
    def taught_steps(self) -> tuple[Step, ...]:
        """The steps that may become training rows: all of a rollout, the edited one and later ones of a repair.

        Between several edits, nothing shows that a step was right: what followed it was replaced.

        References:
            Algorithm 2 of SiriuS (arXiv:2502.04780): a repair of agent k feeds agents k..K.
        """
        if self.edited is None:
            return self.steps
        first = self.steps[self.edited]
        edits = [step for step in self.steps if step is first or step.source == "edited"]
        end = max(step.ended for step in edits)
        return tuple(step for step in self.steps if step in edits or step.started >= end)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, which shares its values with the trajectory; `from_dict` gives an equal one back."""
        record = dict(zip(_TRAJECTORY_FIELDS, _read_trajectory(self), strict=True))
        record["steps"] = [step.to_dict() for step in self.steps]
        record["rewards"] = dict(self.rewards)
        record["failure"] = self.failure and dataclasses.asdict(self.failure)
        record["created_at"] = self.created_at.isoformat()
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Trajectory:
        """The trajectory that `to_dict` wrote."""
        values = dict(record)
        values["steps"] = tuple(step_from_dict(step) for step in record["steps"])
        values["failure"] = record["failure"] and Failure(**record["failure"])
        values["created_at"] = datetime.fromisoformat(record["created_at"])
        return cls(**values)


_TRAJECTORY_FIELDS = tuple(item.name for item in dataclasses.fields(Trajectory))

_read_trajectory = attrgetter(*_TRAJECTORY_FIELDS)


def step_from_dict(record: Mapping[str, Any]) -> Step:
    """The step that `Step.to_dict` wrote."""
    values = dict(record)
    values["failure"] = record["failure"] and Failure(**record["failure"])
    values["usage"] = Usage(**record["usage"])
    values["others"] = tuple(record["others"])
    return Step(**values)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at repairing a failed trajectory by editing one of its steps."""

    position: int
    """Index of the edited step in the failed trajectory."""
    predictor: str
    verdict: Verdict
    """`repaired`; `failed`: replayed, still wrong; `leaked`: refused by the leak guard; `unparsed`: an answer of the
    critic or the agent could not be parsed; `unchanged`: the agent repeated itself; `diverged`: the replay did not
    repeat the recording; `unconfirmed`: it succeeded once, and not again."""
    feedback: str | None = None
    """What the agent was told: a critique or a hint."""
    regenerated: Values | None = None
    rephrased: Values | None = None
    """What the replay used; equal to `regenerated` where nothing had to be rephrased."""
    reward: float | None = None
    """Of the replayed run; `None` if there was none."""
    trajectory: str | None = None
    """Id of the replayed run."""
    detail: str = ""
    usage: Usage = Usage()
    """Of the critic, the regeneration and the rephrasing; the replay's own is in its trajectory."""
    rung: str = ""
    """Name of the augmenter that made it, in a ladder of several; see `LadderAugmenter`."""
    reliance: float | None = None
    """How much likelier the kept text is with the help than without it, in nats per token; `None` where it was not
    measured."""


@dataclass(frozen=True, slots=True)
class Repair:
    """All attempts at one failed trajectory, successful or not."""

    parent: str
    """Id of the failed trajectory."""
    attempts: tuple[Attempt, ...]
    run: str = ""
    iteration: int = 0
    seconds: float = 0.0

    @property
    def repaired(self) -> bool:
        """Whether one of the attempts reached the threshold."""
        return any(attempt.verdict == "repaired" for attempt in self.attempts)

    @property
    def usage(self) -> Usage:
        """Sum over the attempts, without the replays."""
        return sum((attempt.usage for attempt in self.attempts), Usage())

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `from_dict` gives an equal value back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Repair:
        """The repair that `to_dict` wrote."""
        attempts = (Attempt(**{**item, "usage": Usage(**item["usage"])}) for item in record["attempts"])
        return cls(**{**record, "attempts": tuple(attempts)})


IsOwn = Callable[[Trajectory, Step], bool]
"""Whether the LM of a step's agent answered it, and not another one that `forward` chose."""


def every_step(trajectory: Trajectory, step: Step) -> bool:
    """The `IsOwn` of runs in which every agent answered with its own LM."""
    return True
