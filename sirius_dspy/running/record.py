"""Run a DSPy program once and record every predictor call.

The seam is the adapter: `dspy.Predict` hands each call to `dspy.settings.adapter`, which is context-local. A wrapper
around the active adapter sees every call, can answer it from a recording, and passes the rest on. Nothing on the
program, on DSPy or on the LMs is patched, no copy of the program is made, and threads cannot mix, because all state of
a run hangs on its own context.

A call that this cannot see is detected and refused with `UnrecordableCallError`: one from a raw thread (which does not
inherit the context), or under an adapter that the program sets itself. So is, in a compile, one by a generator that the
program returned. An LM object that `forward` calls directly, not through a predictor, is no step: it is neither trained
nor replayed, and runs again in every replay.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import dspy

from sirius_dspy.lms import note_outside_lm
from sirius_dspy.program import is_awaited, is_called, predictor_names
from sirius_dspy.running.blind_spots import last_calls, refuse_raw_threads
from sirius_dspy.running.exits import exits_as_errors
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.running.tap import TapAdapter
from sirius_dspy.running.tape import Tape
from sirius_dspy.running.watch import time_run
from sirius_dspy.trajectory import Values


def record(program: dspy.Module, inputs: Values, sampling: Sampling | None = None) -> Recording:
    """Run the program on the inputs and record every predictor call.

    An exception of the program is part of the recording, not raised, and so is an exit, such as one that code which an
    LM wrote asks for; `KeyboardInterrupt` goes through.

    Args:
        program: Any DSPy module; one that has only `aforward` is run in an event loop of its own. It is not changed.
        inputs: Keyword arguments of the program.
        sampling: How to ask the LMs; by default as the program does.

    Raises:
        UnrecordableCallError: A predictor was called where recording cannot see it.
    """
    return run_tape(Tape(program, sampling or Sampling()), inputs)


async def arecord(program: dspy.Module, inputs: Values, sampling: Sampling | None = None) -> Recording:
    """Like `record`, awaiting `program.acall`."""
    return await arun_tape(Tape(program, sampling or Sampling()), inputs)


def run_tape(tape: Tape, inputs: Values) -> Recording:
    """Run the tape's program, synchronously if it can be."""
    if is_awaited(tape.program) and not is_called(tape.program):
        return asyncio.run(arun_tape(tape, inputs))
    prediction, error = None, None
    with _tap(tape):
        try:
            with exits_as_errors():
                prediction = tape.program(**inputs)
                if inspect.iscoroutine(prediction):  # `async def forward`
                    prediction = asyncio.run(prediction)
        except Exception as raised:  # a failed run is data
            error = raised
    return tape.finish(prediction, error)


async def arun_tape(tape: Tape, inputs: Values) -> Recording:
    """Like `run_tape`, awaiting the program."""
    prediction, error = None, None
    with _tap(tape):
        try:
            with exits_as_errors():
                prediction = await tape.program.acall(**inputs)
        except Exception as raised:
            error = raised
    return tape.finish(prediction, error)


@contextmanager
def _tap(tape: Tape) -> Iterator[None]:
    """The context in which the program runs, so that its calls come to the tape."""
    predictors = predictor_names(tape.program)
    before = last_calls(predictors)
    tape.start()
    adapter = TapAdapter(dspy.settings.adapter or dspy.ChatAdapter(), tape)
    callbacks = [*dspy.settings.callbacks, *([] if tape.watch is None else [tape.watch])]
    with (
        time_run(),
        note_outside_lm(),
        dspy.context(adapter=adapter, trace=tape.trace, disable_history=True, callbacks=callbacks),
    ):
        yield
    refuse_raw_threads(predictors, before)
