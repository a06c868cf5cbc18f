"""What one run writes down: a step for each predictor call, with the clock and the counters of the run."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from sirius_dspy.dspy_internals import caller_modules
from sirius_dspy.errors import UnreadableValueError
from sirius_dspy.program import predictor_names, signature_digest
from sirius_dspy.redact import hide, remember_secrets
from sirius_dspy.running.blind_spots import Strangers, refuse_own_adapters
from sirius_dspy.running.faults import describe_error
from sirius_dspy.running.journal import call_key, current_journal, name_of
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.running.restoring import recorded_error, restore_outputs
from sirius_dspy.running.watch import current_watch
from sirius_dspy.trajectory import Source, Step, Usage, Values, canonical, to_plain


@dataclass
class Call:
    """A predictor call under way."""

    predictor: str
    occurrence: int
    inputs: Values
    lm: Any
    num_demos: int
    signature: str
    """Fingerprint of the signature."""
    twin: tuple[str, str, int]
    """Predictor, inputs, and how many equal calls came before: the same in every order of parallel calls."""
    started: int
    clock: float
    source: Source = "live"
    usage: Usage = field(default_factory=Usage)
    prompt: str | None = None
    finish: str = ""
    key: str = ""
    """Names the call in a journal; empty if its answer is not kept."""
    is_kept: bool = False
    """Whether it was answered from a journal."""

    def repeat(self, step: Step) -> None:
        """Copy from a recorded call what was sent, since a replay does not send it again."""
        self.prompt, self.finish = step.prompt, step.finish


class Tape:
    """Everything that one run writes down. The adapter wrapper of that run's context points to it.

    Args:
        program: The program that runs.
        sampling: How its LMs are asked.
    """

    def __init__(self, program: dspy.Module, sampling: Sampling) -> None:
        self.program = program
        self.sampling = sampling
        self.trace: list[Any] = []
        self.watch = current_watch()
        self._journal = current_journal()
        self._steps: list[Step] = []
        self._faults: list[Exception] = []
        self._lock = threading.Lock()  # protects the clock, the counters and the lists: calls may run in parallel
        self._clock = 0
        self._occurrences: Counter[str] = Counter()
        self._twins: Counter[tuple[str, str]] = Counter()
        self._names = _Names(program)
        self._strangers = Strangers(program)
        self._began = 0.0

    def start(self) -> None:
        """Start the clock of the run."""
        self._began = time.perf_counter()

    def begin(self, lm: Any, signature: Any, inputs: Values, demos: Sequence[Any]) -> Call:
        """Register a call before it is answered; inputs are copied now, since programs go on changing their lists."""
        modules = caller_modules()
        name = self._names.of(modules[-1] if modules else None)
        if name.startswith("<"):
            self._strangers.note(modules)
        remember_secrets(lm)
        plain = hide(to_plain(inputs))
        question = canonical(plain)
        with self._lock:
            occurrence, started = self._occurrences[name], self._clock
            twin = name, question, self._twins[name, question]
            self._occurrences[name] += 1
            self._twins[name, question] += 1
            self._clock += 1
        return Call(
            name, occurrence, plain, lm, len(demos), signature_digest(signature), twin, started, time.perf_counter()
        )

    def canned_outputs(self, call: Call, signature: Any) -> list[dict[str, Any]] | None:
        """Outputs that the run is to have in place of the LM's; `None` for the LM's own."""
        return None

    def prepare(self, call: Call, kwargs: Mapping[str, Any], demos: Sequence[Any]) -> None:
        """Note what a call is about to send, by which its answer is kept; for a run without a name, nobody keeps it."""
        call.num_demos = len(demos)
        if self._journal is not None and self.sampling.key:
            call.key = call_key(self.sampling.key, call.twin, call.signature, call.lm, kwargs, demos)

    def kept_outputs(self, call: Call, signature: Any) -> list[dict[str, Any]] | None:
        """Return what an earlier process was answered before it was killed; `None` to ask the LM.

        Raises:
            AdapterParseError: The answer did not parse.
        """
        if self._journal is None or not call.key or (step := self._journal.find(call.key)) is None:
            return None
        try:
            outputs = None if step.outputs is None else restore_outputs(step, signature)
        except UnreadableValueError:
            return None
        call.repeat(step)
        call.usage, call.is_kept = step.usage, True
        call.clock -= step.seconds
        if outputs is None:
            raise recorded_error(step, signature)
        return outputs

    def end(self, call: Call, outputs: Sequence[Values] | None, error: Exception | None) -> None:
        """Write the call down as a step."""
        plain = hide([to_plain(output) for output in outputs or ()])
        seconds = time.perf_counter() - call.clock
        failure = None if error is None else describe_error(error)
        with self._lock:
            ended = self._clock
            self._clock += 1
            if error is not None and call.source == "live":
                self._faults.append(error)
            step = Step(
                predictor=call.predictor,
                occurrence=call.occurrence,
                inputs=call.inputs,
                outputs=plain[0] if plain else None,
                lm=name_of(call.lm),
                failure=failure,
                source=call.source,
                usage=call.usage,
                seconds=seconds,
                started=call.started,
                ended=ended,
                num_demos=call.num_demos,
                others=tuple(plain[1:]),
                prompt=hide(call.prompt),
                signature=call.signature,
                finish=call.finish,
            )
            self._steps.append(step)
        self._keep(call, step)

    def _keep(self, call: Call, step: Step) -> None:
        """Keep the answer of a live call until its run has ended, also one that did not parse."""
        was_answered = step.outputs is not None or (step.failure is not None and step.failure.completion is not None)
        if self._journal is not None and call.key and was_answered and not call.is_kept:
            self._journal.keep(call.key, step)

    def lm_kwargs(self, call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the call's own LM arguments, those of the sampling, and a rollout id of its own."""
        kwargs = {**given, **self.sampled_kwargs(call)}
        remember_secrets(call.lm, kwargs)
        defaults = getattr(call.lm, "kwargs", {})
        if not self.sampling.key or kwargs.get("temperature", defaults.get("temperature")) == 0:
            return kwargs
        # A rollout id that dspy.Refine or dspy.BestOfN put there keeps its effect: it is mixed in.
        given_id = kwargs.get("rollout_id", defaults.get("rollout_id"))
        text = canonical([self.sampling.key, given_id, *call.twin])
        return {**kwargs, "rollout_id": int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)}

    def sampled_kwargs(self, call: Call) -> Mapping[str, Any]:
        """Return the LM arguments that this run adds to a live call."""
        return self.sampling.lm_kwargs

    def demos(self, call: Call, given: Sequence[Any]) -> Sequence[Any]:
        """Return the demonstrations to show in this call."""
        return list(self.sampling.demos.get(call.predictor, given))

    def finish(self, prediction: Any, error: Exception | None) -> Recording:
        """Return the finished run.

        Raises:
            UnrecordableCallError: DSPy's trace has calls that did not come through the adapter wrapper.
        """
        steps = tuple(sorted(self._steps, key=lambda step: step.started))
        traced = Counter(self._names.of(predictor) for predictor, _, _ in self.trace)
        refuse_own_adapters(traced, Counter(step.predictor for step in steps if step.failure is None))
        self._strangers.warn()
        seconds = time.perf_counter() - self._began
        return Recording(steps, prediction, self.trace, error, seconds, faults=tuple(self._faults))


class _Names:
    """The names of a program's predictors, by object."""

    def __init__(self, program: dspy.Module) -> None:
        predictors = predictor_names(program)
        self._by_identity = {id(predictor): name for name, predictor in predictors.items()}
        stages = Counter(predictor.stage for predictor in predictors.values())
        self._by_stage = {item.stage: name for name, item in predictors.items() if stages[item.stage] == 1}

    def of(self, predictor: Any) -> str:
        """The predictor's name; in `<...>` if it is no part of the program.

        Copies that dspy.Refine and dspy.BestOfN make are recognized by `stage`, which they keep.
        """
        name = self._by_identity.get(id(predictor)) or self._by_stage.get(getattr(predictor, "stage", ""))
        return name or f"<{type(predictor).__name__}>"
