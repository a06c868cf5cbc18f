"""Whose fault it is that a call failed. Every stage asks this module.

- *program*: the program's code or one of its tools raised, or a reply did not parse. The run is a failed one.
- *refusal*: the LM will not answer this request, which may be the request's fault: too long, against a policy, with a
  parameter that the LM does not know. The run is a failed one, unless every run ends so.
- *transient*: the LM or the network failed. The call is tried again after a while. A run that never got its answer says
  nothing about the program, so it is *unfinished* and no trajectory is made of it.
- *systemic*: credentials, credit or configuration. Every other call would fail as well.

Errors are told apart by DSPy's own classes, wherever they are in a chain of causes, since programs and metrics wrap
what they catch.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Literal

from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMProviderError,
    LMUnexpectedError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)

from sirius_dspy.dspy_internals import retry_after_s, to_lm_error
from sirius_dspy.errors import PromptTooLongError, RolloutError, SiriuSError
from sirius_dspy.plain import to_plain
from sirius_dspy.redact import redact, redact_error
from sirius_dspy.trajectory import Failure

Fault = Literal["program", "refusal", "transient", "systemic"]
"""Whose fault a failure is; see the module."""

SYSTEMIC = (LMAuthError, LMBillingError, LMConfigurationError, LMUnsupportedModelError)
"""Errors of an LM that every call would share."""

LONGEST_HINT_S = 300.0
"""A server that asks for more patience than this has failed."""

NO_SUCH_ADDRESS = (404, 405)
"""HTTP states of a server that is not an LM's, or not under this address."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from: causes, contexts that were not suppressed, and members of groups."""
    queue, seen = [error], set()
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        queue += [current.__cause__ or (None if current.__suppress_context__ else current.__context__)]
        queue += getattr(current, "exceptions", ()) if isinstance(current, BaseExceptionGroup) else ()


def asked_wait_s(error: BaseException) -> float:
    """Return for how many seconds the server asked to wait; 0 if it did not."""
    hints = (retry_after_s(cause) for cause in chain(error))
    return next((seconds for seconds in hints if seconds is not None), 0.0)


def fault_of(error: BaseException | None) -> Fault:
    """Whose fault an error is that came out of a program, a metric or an augmenter."""
    causes = list(chain(error))
    if any(isinstance(cause, PromptTooLongError) for cause in causes):  # DSPy wraps what an engine raises
        return "program"
    return next((_fault_of_lm(cause) for cause in causes if isinstance(cause, LMError)), "program")


def fault_of_call(error: Exception) -> Fault:
    """Whose fault an error is that came out of a predictor's call.

    LMs that DSPy does not manage raise errors of their own, of the network or of an SDK. In a tool of the program they
    would be the program's; in a call of an LM they are the LM's.
    """
    if any(isinstance(cause, LMError | PromptTooLongError) for cause in chain(error)):
        return fault_of(error)
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return "transient"
    translated = to_lm_error(error)
    return "program" if translated is None else fault_of(translated)


def _fault_of_lm(error: LMError) -> Fault:
    if isinstance(error, SYSTEMIC) or error.status in NO_SUCH_ADDRESS:
        return "systemic"
    if is_retryable_lm_error(error) or isinstance(error, LMUnexpectedError):
        return "transient"
    if isinstance(error, ContextWindowExceededError):
        return "program"
    # The class itself is what DSPy raises for a body that is no reply; the other subclasses refuse the request.
    is_no_reply = type(error) is LMProviderError and not 400 <= (error.status or 0) < 500
    return "transient" if is_no_reply else "refusal"


def raise_sirius_error(error: BaseException | None) -> None:
    """Raise the first error of this package in a chain, since it is about the compile and not about one run.

    Raises:
        SiriuSError: There is one.
    """
    causes = list(chain(error))
    if any(isinstance(cause, PromptTooLongError) for cause in causes):
        return
    for cause in causes:
        if isinstance(cause, SiriuSError):
            raise cause


def raise_if_systemic(error: BaseException | None) -> None:
    """Raise what would fail every other call, too.

    Raises:
        RolloutError: An LM refused for lack of credentials, credit or configuration.
        SiriuSError: An error of this package is in the chain.
    """
    raise_sirius_error(error)
    if isinstance(error, Exception) and fault_of_call(error) == "systemic":
        failure = describe_error(error)
        raise RolloutError(
            f"{failure.kind}: {failure.message} All finished rollouts are kept. Correct the LM's credentials, credit "
            "or settings, then run the same `compile` again to resume."
        ) from error


def describe_error(error: BaseException) -> Failure:
    """Turn an exception into a plain value without credentials; the exception itself shows none from now on either."""
    redact_error(error)
    completion = error.lm_response if isinstance(error, AdapterParseError) else None
    completion = None if completion is None else redact(str(to_plain(completion)))
    return Failure(type(error).__name__, redact(_text_of(error))[:2000], completion)


def _text_of(error: BaseException) -> str:
    """What an exception says; classes may build their text themselves, and fail at it."""
    try:
        return str(error)
    except Exception as failed:
        return f"<no text: {type(failed).__name__}>"
