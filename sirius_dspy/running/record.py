"""Run a DSPy program once and record every predictor call; run it again with one call's outputs replaced.

The seam is the adapter: `dspy.Predict` hands each call to `dspy.settings.adapter`, which is context-local. A wrapper
around the active adapter sees every call, can answer it from a recording, and passes the rest on. Nothing on the
program, on DSPy or on the LMs is patched, no copy of the program is made, and threads cannot mix, because all state of
a run hangs on its own context.

What this cannot see is found out and refused with `UnrecordableCallError`: predictors called from raw threads (which do
not inherit the context) or under an adapter that the program sets itself. An LM object that `forward` calls directly,
not through a predictor, is no step: it is neither trained nor replayed, and runs again in every replay.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, NoReturn

import dspy
from dspy.adapters.base import Adapter
from dspy.utils.exceptions import AdapterParseError

from sirius_dspy.errors import ReplayDivergedError, SettingsError, UnreadableValueError, UnrecordableCallError
from sirius_dspy.lms import called_from_outside
from sirius_dspy.plain import coerce
from sirius_dspy.program import is_awaited, is_called, predictor_names, signature_digest
from sirius_dspy.redact import hide, redact, redact_error, remember_secrets
from sirius_dspy.running.asked import Listener, Request, alias_of, listening, prompt_text, refused_if_void
from sirius_dspy.running.failures import Tries, current_watch, timed_run
from sirius_dspy.trajectory import (
    Edit,
    Failure,
    Source,
    Step,
    Trajectory,
    Usage,
    Values,
    canonical,
    from_plain,
    to_plain,
)

_NOT_THE_USERS = frozenset({"dspy", "sirius_dspy", "asyncio", "concurrent", "threading", "contextlib", "contextvars"})
"""Packages whose frames stand between a user's line and the call of a predictor."""


@dataclass(frozen=True)
class Sampling:
    """How the LMs are asked during one run."""

    key: str = ""
    """Names the sample, e.g. `seed/iteration/example/sample`. Each call gets a rollout id derived from it, so repeated
    calls differ, and the same key repeats them (from DSPy's cache, or through the seed of a local engine). Empty: the
    calls stay as the program makes them."""
    lm_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Added to every live call, e.g. `{"temperature": 1.0}`."""
    demos: Mapping[str, Sequence[dspy.Example]] = field(default_factory=dict)
    """Predictor name to demonstrations shown instead of the predictor's own."""


@dataclass(frozen=True)
class Recording:
    """One run of a program: the steps as plain values, and the live objects a metric wants."""

    steps: tuple[Step, ...]
    prediction: Any
    """What the program returned; `None` if it raised."""
    trace: list[Any]
    """DSPy's own trace: (predictor, inputs, prediction) of every call that succeeded."""
    error: Exception | None
    """What the program raised."""
    seconds: float
    edited: int | None = None
    """Position of the edited step, in a replay."""
    faults: tuple[Exception, ...] = ()
    """What live calls raised, also where the program caught it."""

    @property
    def failure(self) -> Failure | None:
        """The error as a plain value."""
        return None if self.error is None else describe(self.error)


def record(program: dspy.Module, inputs: Values, sampling: Sampling | None = None) -> Recording:
    """Run the program on the inputs and record every predictor call.

    An exception of the program is part of the recording, not raised; `KeyboardInterrupt` and the like go through.

    Args:
        program: Any DSPy module; one that has only `aforward` is run in an event loop of its own. It is not changed.
        inputs: Keyword arguments of the program.
        sampling: How to ask the LMs; by default as the program does.

    Raises:
        UnrecordableCallError: A predictor was called where recording cannot see it.
    """
    return _run(_Tape(program, sampling or Sampling()), inputs)


async def arecord(program: dspy.Module, inputs: Values, sampling: Sampling | None = None) -> Recording:
    """Like `record`, awaiting `program.acall`."""
    return await _arun(_Tape(program, sampling or Sampling()), inputs)


def replay(
    program: dspy.Module, inputs: Values, recorded: Trajectory, edit: Edit, sampling: Sampling | None = None
) -> Recording:
    """Run the program again with one step's outputs replaced.

    Calls whose inputs equal those of a recorded step are answered from the recording, all others ask the LM. So what
    came before the edit costs nothing, and after it only that is asked again which the edit changed.

    Args:
        program: The program that was recorded.
        inputs: The inputs it was recorded with.
        recorded: Its trajectory; the steps may come from disk.
        edit: The step to replace, and its new outputs as plain values, one for every output field of its signature.
        sampling: How to ask the LMs in the calls that are made again.

    Raises:
        ReplayDivergedError: The run did not repeat the recording up to the edit, or never got there, or the edit does
            not name the output fields of the step.
        UnrecordableCallError: A predictor was called where recording cannot see it.

    References:
        Algorithm 2 of SiriuS (arXiv:2502.04780), with its step `S_j = Sus(A(k)) ^ Pre(A(j))` read as: whoever reads the
        repaired answer answers again, everybody else keeps their answer.
    """
    tape = _ReplayTape(program, sampling or Sampling(), recorded.steps, edit)
    return tape.checked(_run(tape, inputs))


async def areplay(
    program: dspy.Module, inputs: Values, recorded: Trajectory, edit: Edit, sampling: Sampling | None = None
) -> Recording:
    """Like `replay`, awaiting `program.acall`."""
    tape = _ReplayTape(program, sampling or Sampling(), recorded.steps, edit)
    return tape.checked(await _arun(tape, inputs))


def describe(error: BaseException) -> Failure:
    """An exception as a plain value, without credentials; what it shows elsewhere is without them from now on."""
    redact_error(error)
    completion = error.lm_response if isinstance(error, AdapterParseError) else None
    completion = None if completion is None else redact(str(to_plain(completion)))
    return Failure(type(error).__name__, redact(str(error))[:2000], completion)


def check_shown(name: str, demos: Sequence[Any], signature: type[dspy.Signature]) -> None:
    """Refuse demonstrations without any input or any output of a signature: DSPy leaves those out of every prompt.

    Args:
        name: What to call them in the message.
        demos: Demonstrations of the signature.
        signature: What they demonstrate.

    Raises:
        SettingsError: The message names the first one by its position.
    """
    for position, demo in enumerate(demos):
        for kind, fields in (("input", signature.input_fields), ("output", signature.output_fields)):
            if not any(demo.get(field) is not None for field in fields):
                raise SettingsError(
                    f"{name}[{position}] has none of the {kind} fields {list(fields)}; it has {list(demo.keys())}. "
                    "DSPy would leave it out of every prompt. Give it the fields of the predictor that it demonstrates."
                )


def _run(tape: _Tape, inputs: Values) -> Recording:
    if is_awaited(tape.program) and not is_called(tape.program):
        return asyncio.run(_arun(tape, inputs))
    prediction, error = None, None
    with tape.rolling():
        try:
            prediction = tape.program(**inputs)
            if inspect.iscoroutine(prediction):  # `async def forward`
                prediction = asyncio.run(prediction)
        except Exception as raised:  # a failed run is data
            error = raised
    return tape.recording(prediction, error)


async def _arun(tape: _Tape, inputs: Values) -> Recording:
    prediction, error = None, None
    with tape.rolling():
        try:
            prediction = await tape.program.acall(**inputs)
        except Exception as raised:
            error = raised
    return tape.recording(prediction, error)


@dataclass
class _Call:
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

    def repeat(self, step: Step) -> None:
        """Take over from a recorded call what was sent, which a replay does not send again."""
        self.prompt, self.finish = step.prompt, step.finish


class _Tape:
    """Everything one run writes down. One object per run; the adapter wrapper of that run's context points to it."""

    def __init__(self, program: dspy.Module, sampling: Sampling) -> None:
        self.program = program
        self.sampling = sampling
        self.trace: list[Any] = []
        self.watch = current_watch()
        self._steps: list[Step] = []
        self._faults: list[Exception] = []
        self._lock = threading.Lock()  # protects the clock, the counters and the list: calls may run in parallel
        self._clock = 0
        self._occurrences: Counter[str] = Counter()
        self._twins: Counter[tuple[str, str]] = Counter()
        self._predictors = predictor_names(program)
        self._by_identity = {id(predictor): name for name, predictor in self._predictors.items()}
        stages = Counter(predictor.stage for predictor in self._predictors.values())
        self._by_stage = {p.stage: name for name, p in self._predictors.items() if stages[p.stage] == 1}
        self._clock_started = 0.0
        self._strangers: dict[str, tuple[str, int, dict[str, Any]]] = {}

    @contextmanager
    def rolling(self) -> Iterator[None]:
        """The context in which the program runs."""
        marks = self._history_marks()
        self._clock_started = time.perf_counter()
        adapter = _TapAdapter(dspy.settings.adapter or dspy.ChatAdapter(), self)
        callbacks = [*dspy.settings.callbacks, *([] if self.watch is None else [self.watch])]
        with (
            timed_run(),
            called_from_outside(),
            dspy.context(adapter=adapter, trace=self.trace, disable_history=True, callbacks=callbacks),
        ):
            yield
        self._refuse_raw_threads(marks)

    def begin(self, lm: Any, signature: Any, inputs: Values, demos: Sequence[Any]) -> _Call:
        """Register a call before it is answered; inputs are copied now, since programs go on changing their lists."""
        modules = dspy.settings.caller_modules
        name = self._name(modules[-1] if modules else None)
        if name.startswith("<"):
            self._note_stranger(modules or [])
        remember_secrets(lm)
        plain = hide(to_plain(inputs))
        question = canonical(plain)
        with self._lock:
            occurrence, started = self._occurrences[name], self._clock
            twin = name, question, self._twins[name, question]
            self._occurrences[name] += 1
            self._twins[name, question] += 1
            self._clock += 1
        asked = signature_digest(signature)
        return _Call(name, occurrence, plain, lm, len(demos), asked, twin, started, time.perf_counter())

    def canned(self, call: _Call, signature: Any) -> list[dict[str, Any]] | None:
        """Outputs to return without asking the LM, or `None`."""
        return None

    def end(self, call: _Call, outputs: Sequence[Values] | None, error: Exception | None) -> None:
        """Write the call down as a step."""
        plain = hide([to_plain(output) for output in outputs or ()])
        seconds = time.perf_counter() - call.clock
        failure = None if error is None else describe(error)
        with self._lock:
            ended = self._clock
            self._clock += 1
            if error is not None and call.source == "live":
                self._faults.append(error)
            self._steps.append(
                Step(
                    call.predictor,
                    call.occurrence,
                    call.inputs,
                    plain[0] if plain else None,
                    str(getattr(call.lm, "model", call.lm)),
                    failure,
                    call.source,
                    call.usage,
                    seconds,
                    call.started,
                    ended,
                    call.num_demos,
                    tuple(plain[1:]),
                    hide(call.prompt),
                    call.signature,
                    call.finish,
                )
            )

    def lm_kwargs(self, call: _Call, given: Mapping[str, Any]) -> dict[str, Any]:
        """The call's own LM arguments, those of the sampling, and a rollout id of its own."""
        kwargs = {**given, **self.sampling.lm_kwargs}
        remember_secrets(call.lm, kwargs)
        defaults = getattr(call.lm, "kwargs", {})
        if not self.sampling.key or kwargs.get("temperature", defaults.get("temperature")) == 0:
            return kwargs
        # A rollout id that dspy.Refine or dspy.BestOfN put there keeps its effect: it is mixed in.
        given_id = kwargs.get("rollout_id", defaults.get("rollout_id"))
        text = canonical([self.sampling.key, given_id, *call.twin])
        return {**kwargs, "rollout_id": int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)}

    def demos(self, call: _Call, given: Sequence[Any]) -> Sequence[Any]:
        """The demonstrations to show in this call."""
        return list(self.sampling.demos.get(call.predictor, given))

    def recording(self, prediction: Any, error: Exception | None) -> Recording:
        """The finished run.

        Raises:
            UnrecordableCallError: DSPy's trace has calls that did not come through the adapter wrapper.
        """
        steps = tuple(sorted(self._steps, key=lambda step: step.started))
        self._refuse_own_adapters(steps)
        self._warn_of_strangers()
        seconds = time.perf_counter() - self._clock_started
        return Recording(steps, prediction, self.trace, error, seconds, faults=tuple(self._faults))

    def _name(self, predictor: Any) -> str:
        """The predictor's name. Copies that dspy.Refine and dspy.BestOfN make are found by `stage`, which they keep."""
        name = self._by_identity.get(id(predictor)) or self._by_stage.get(getattr(predictor, "stage", ""))
        return name or f"<{type(predictor).__name__}>"

    def _note_stranger(self, modules: Sequence[Any]) -> None:
        """Note where a predictor is called that is no part of the program; DSPy's own modules may have such."""
        parts = {id(module) for _, module in self.program.named_sub_modules()}
        *callers, called = modules or [None]
        caller = next((module for module in reversed(callers) if id(module) in parts), self.program)
        if id(called) in parts or type(caller).__module__.partition(".")[0] == "dspy":
            return  # part of a module that is compiled already, or advice that dspy.Refine asks for
        frame = _users_frame()
        where = type(caller).__qualname__ if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        message = (
            f"{where} calls a `dspy.{type(called).__name__}` that is no attribute of the program, so it is neither "
            "trained nor repaired. Keep it as an attribute of one of the program's modules."
        )
        place = (__file__, 0, {}) if frame is None else (frame.f_code.co_filename, frame.f_lineno, frame.f_globals)
        self._strangers[message] = place

    def _warn_of_strangers(self) -> None:
        """Warn at the user's own lines, so that Python shows each once; after the run, which a warning must not end."""
        for message, (file, line, names) in self._strangers.items():
            registry = names.setdefault("__warningregistry__", {})
            warnings.warn_explicit(message, UserWarning, file, line, registry=registry)

    def _history_marks(self) -> dict[str, Any]:
        return {name: predictor.history[-1:] for name, predictor in self._predictors.items()}

    def _refuse_raw_threads(self, marks: Mapping[str, Any]) -> None:
        """A recorded call leaves no history (the context turns it off); one from a raw thread does."""
        for name, predictor in self._predictors.items():
            before, now = marks[name], predictor.history[-1:]
            if now and (not before or before[0] is not now[0]):
                raise UnrecordableCallError(
                    f"Predictor {name!r} was called outside the recorded context, as from a thread that the program "
                    "starts itself, or by other code that uses the same program at the same time. Call predictors in "
                    "parallel with `dspy.Parallel`, or start threads with `contextvars.copy_context().run`."
                )

    def _refuse_own_adapters(self, steps: Sequence[Step]) -> None:
        recorded = Counter(step.predictor for step in steps if step.failure is None)
        traced = Counter(self._name(predictor) for predictor, _, _ in self.trace)
        for name, unseen in (traced - recorded).items():
            raise UnrecordableCallError(
                f"Predictor {name!r} was called {unseen} times under an adapter that the program sets itself. Take "
                "`dspy.context(adapter=...)` out of `forward` and set the adapter with `dspy.configure`."
            )


class _ReplayTape(_Tape):
    """A run that answers from a recording where the inputs are the same, and edits one step."""

    def __init__(self, program: dspy.Module, sampling: Sampling, recorded: Sequence[Step], edit: Edit) -> None:
        super().__init__(program, sampling)
        self.edit = edit
        self.target = recorded[edit.position]
        # Steps that had not ended when the target began cannot have read it, nor it them; those after it may.
        self._required = {id(step) for step in recorded if step.started < self.target.started}
        self._answers: dict[tuple[str, str], list[Step]] = defaultdict(list)
        for step in recorded:
            self._answers[step.predictor, canonical(step.inputs)].append(step)
        self._replayed: set[int] = set()
        self._edited_call: tuple[str, int] | None = None
        self._problem = ""

    def canned(self, call: _Call, signature: Any) -> list[dict[str, Any]] | None:
        """The recorded or the edited outputs; raises again what the recorded call raised."""
        step = self._next_answer(call)
        if step is self.target:
            call.repeat(step)
            if self.edit.outputs != step.outputs:
                call.finish = ""  # the edit is a whole answer to what was sent, however the first one ended
            return [self._edited_outputs(call, signature)]
        if step is not None:
            call.source, call.lm = "recorded", step.lm
            call.repeat(step)
            with self._lock:
                self._replayed.add(id(step))
            if step.outputs is None:
                raise _again(step, signature)
            try:
                return [typed(outputs, signature.output_fields) for outputs in (step.outputs, *step.others)]
            except UnreadableValueError as error:
                self._diverge(f"the outputs of {call.predictor!r} cannot be made again: {error}")
        if self._edited_call is None:
            self._diverge(f"{call.predictor!r} was called with inputs that the recording does not have")
        return None

    def checked(self, recording: Recording) -> Recording:
        """The recording with the position of the edit, if it is one of this edit and nothing else.

        Raises:
            ReplayDivergedError: It is not.
        """
        if self._problem:
            raise ReplayDivergedError(self._message(self._problem))
        if self._edited_call is None:
            raise ReplayDivergedError(self._message("the edited step was not reached"))
        if missing := self._required - self._replayed:
            raise ReplayDivergedError(
                self._message(f"{len(missing)} recorded calls before the edit did not come again")
            )
        calls = [(step.predictor, step.occurrence) for step in recording.steps]
        return replace(recording, edited=calls.index(self._edited_call))

    def _next_answer(self, call: _Call) -> Step | None:
        predictor, question, number = call.twin
        answers = self._answers.get((predictor, question), [])
        return answers[number] if number < len(answers) else None

    def _edited_outputs(self, call: _Call, signature: Any) -> dict[str, Any]:
        if set(self.edit.outputs) != set(signature.output_fields):
            fields = sorted(signature.output_fields)
            self._diverge(f"the edit has the fields {sorted(self.edit.outputs)}, the step has {fields}")
        call.source = "edited"
        with self._lock:
            self._edited_call = call.predictor, call.occurrence
        fields = signature.output_fields
        return {name: coerce(value, fields[name].annotation) for name, value in self.edit.outputs.items()}

    def _diverge(self, problem: str) -> NoReturn:
        """Stop the run before it asks an LM; noted as well, because programs may catch what their predictors raise."""
        with self._lock:
            self._problem = self._problem or problem
        raise ReplayDivergedError(self._message(problem))

    def _message(self, problem: str) -> str:
        return (
            f"The replay with an edit of step {self.edit.position} ({self.target.predictor!r}) did not repeat the "
            f"recording: {problem}. Replay needs control flow that depends on nothing but inputs and predictor "
            "outputs: take clocks and unseeded randomness out of `forward`."
        )


def _users_frame() -> FrameType | None:
    """The innermost frame that is neither DSPy's nor ours; there is none in a thread that DSPy started."""
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _NOT_THE_USERS:
        frame = frame.f_back
    return frame


def typed(values: Values, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values as they were when they were recorded; the fields' types help to find their classes."""
    return {
        name: from_plain(value, fields[name].annotation if name in fields else Any) for name, value in values.items()
    }


def _again(step: Step, signature: Any) -> Exception:
    """The exception of a recorded call that failed."""
    failure = step.failure or Failure("RuntimeError", "the recorded call has no outputs")
    if failure.completion is not None:
        return AdapterParseError(
            adapter_name="recorded", signature=signature, lm_response=failure.completion, message=failure.message
        )
    return RuntimeError(f"{failure.kind}: {failure.message}")


class _TapAdapter(Adapter):
    """Passes calls on to the active adapter and tells the tape about them.

    It wraps instead of subclassing ChatAdapter, because each subclass level runs the callbacks of `format` and `parse`
    once more. It can be built without arguments, because dspy.Refine builds one of the active adapter's type; such a
    one passes everything through.
    """

    def __init__(self, base: Adapter | None = None, tape: _Tape | None = None) -> None:
        super().__init__()
        self.base = base or dspy.ChatAdapter()
        self.tape = tape

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        if self.tape is None:
            return self.base(lm, lm_kwargs, signature, demos, inputs)
        call = self.tape.begin(lm, signature, inputs, demos)
        with self._written(call) as written:
            if (outputs := self.tape.canned(call, signature)) is None:
                demos, kwargs = self._asking(call, demos, lm_kwargs)
                with self._heard(call, signature, inputs) as listener:

                    def ask() -> list[dict[str, Any]]:
                        with refused_if_void(lm, kwargs, listener) as found:
                            found += self.base(alias_of(lm), {**kwargs}, signature, demos, inputs)
                        return found

                    outputs = self._tries(lm).call(ask)
            written.append(outputs)
        return outputs

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        if self.tape is None:
            return await self.base.acall(lm, lm_kwargs, signature, demos, inputs)
        call = self.tape.begin(lm, signature, inputs, demos)
        with self._written(call) as written:
            if (outputs := self.tape.canned(call, signature)) is None:
                demos, kwargs = self._asking(call, demos, lm_kwargs)
                with self._heard(call, signature, inputs) as listener:

                    async def ask() -> list[dict[str, Any]]:
                        with refused_if_void(lm, kwargs, listener) as found:
                            found += await self.base.acall(alias_of(lm), {**kwargs}, signature, demos, inputs)
                        return found

                    outputs = await self._tries(lm).acall(ask)
            written.append(outputs)
        return outputs

    def _tries(self, lm: Any) -> Tries:
        return Tries(None if self.tape is None else self.tape.watch, lm)

    def _asking(self, call: _Call, demos: list[Any], lm_kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        if self.tape is None:
            return demos, lm_kwargs
        shown = list(self.tape.demos(call, demos))
        call.num_demos = len(shown)
        return shown, self.tape.lm_kwargs(call, lm_kwargs)

    @contextmanager
    def _heard(self, call: _Call, signature: Any, inputs: Mapping[str, Any]) -> Iterator[Listener]:
        """Note what was sent, also where the reply does not parse: a repair answers it again."""
        with listening(without=self.tape and self.tape.watch) as listener:
            try:
                yield listener
            finally:
                call.usage = listener.usage
                if listener.requests:
                    call.finish = listener.requests[-1].finish
                    call.prompt = self._prompt(listener.requests[0], call, signature, inputs)

    def _prompt(self, asked: Request, call: _Call, signature: Any, inputs: Mapping[str, Any]) -> str | None:
        """The prompt of a training row: the first request of the call, which is what inference sends, too.

        Demonstrations are cut out of it: what is left must be what the adapter writes without them, or there is no such
        prompt.
        """
        if asked.has_tools:
            return None
        if not call.num_demos:
            return prompt_text(asked.messages)
        bare = self.base.format(signature, [], dict(inputs))
        sent = list(asked.messages)
        kept = sent[:1] + sent[len(sent) - len(bare) + 1 :]
        return prompt_text(bare) if len(bare) > 1 and kept == bare else None

    @contextmanager
    def _written(self, call: _Call) -> Iterator[list[Any]]:
        """Write the call down when it ends, whichever way."""
        outputs: list[Any] = []
        error: Exception | None = None
        try:
            yield outputs
        except Exception as raised:
            error = raised
            raise
        finally:
            if self.tape is not None and (outputs or error):
                self.tape.end(call, outputs[0] if outputs else None, error)

    def __getattr__(self, name: str) -> Any:
        """Methods that only some adapters have, such as `format_finetune_data`."""
        if name.startswith("__") or "base" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.base, name)


def _delegate(name: str) -> Callable[..., Any]:
    def method(self: _TapAdapter, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.base, name)(*args, **kwargs)

    method.__name__ = name
    return method


for _name in dir(Adapter):  # modules such as dspy.ReAct format through the active adapter
    if _name == "parse" or _name.startswith("format"):
        setattr(_TapAdapter, _name, _delegate(_name))
