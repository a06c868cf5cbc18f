"""Turns values into bytes for other processes, and back. Only what a worker of one's own wrote is unpacked.

Exceptions need care: many have constructors that their arguments do not fit, or hold what cannot be pickled. They
arrive with their class, text, attributes and causes, but without tracebacks. One that cannot travel is replaced by one
of the same name and text that is just as much the LM's fault, or the program's.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import cloudpickle
import dspy
from dspy.utils.exceptions import LMConfigurationError, LMInvalidRequestError, LMTransportError

from sirius_dspy.running.faults import Fault, fault_of_call

_HANDLES = ("process", "thread", "get_logs")
"""What DSPy notes in an LM about the server that it launched; only the process that did so can use it."""

_STAND_INS: dict[Fault, type[Exception]] = {
    "program": Exception,
    "refusal": LMInvalidRequestError,
    "transient": LMTransportError,
    "systemic": LMConfigurationError,
}
"""The classes of errors that stand for others, by whose fault they are."""


def pack(value: Any) -> bytes:
    """Pickle a value; what the main module defines travels by value.

    Raises:
        Exception: Whatever an object raises that cannot be pickled.
    """
    buffer = io.BytesIO()
    _Packer(buffer).dump(value)
    return buffer.getvalue()


def unpack(data: bytes) -> Any:
    """Return what was packed."""
    return pickle.loads(data)


class _Packer(cloudpickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Say how to pickle a value."""
        if isinstance(value, BaseException):
            return _reduce_error(value)
        if isinstance(value, dspy.LM) and vars(value).keys() & set(_HANDLES):
            bare = object.__new__(type(value))
            vars(bare).update({name: item for name, item in vars(value).items() if name not in _HANDLES})
            return bare.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return super().reducer_override(value)


def _reduce_error(error: BaseException) -> Any:
    if not _travels(type(error)):
        return _reduce_to_stand_in(error)
    try:
        _build(type(error), error.args)
    except Exception:  # a class without a constructor for Python, such as pydantic's
        return _reduce_by_itself(error) or _reduce_to_stand_in(error)
    arguments = tuple(item if _travels(item) else str(item) for item in error.args)
    # A class, such as the signature of a reply that did not parse, is large and tells nothing more.
    attributes = {name: item for name, item in vars(error).items() if not isinstance(item, type) and _travels(item)}
    links = error.__cause__, error.__context__, error.__suppress_context__
    return _build, (type(error), arguments), (arguments, attributes, links), None, None, _fill


def _reduce_by_itself(error: BaseException) -> Any:
    """The way in which the error says that it can be pickled, if it works."""
    try:
        reduced = error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return reduced


def _reduce_to_stand_in(error: BaseException) -> Any:
    fault = fault_of_call(error) if isinstance(error, Exception) else "program"
    return _stand_in, (type(error).__name__, str(error), fault)


def _travels(value: Any) -> bool:
    try:
        unpack(pack(value))
    except Exception:
        return False
    return True


def _build(kind: type[BaseException], arguments: tuple[Any, ...]) -> BaseException:
    return kind.__new__(kind, *arguments)


def _fill(error: BaseException, state: tuple[Any, ...]) -> None:
    error.args, attributes, links = state
    vars(error).update(attributes)
    error.__cause__, error.__context__, error.__suppress_context__ = links


def _stand_in(name: str, text: str, fault: Fault) -> BaseException:
    return type(name, (_STAND_INS[fault],), {})(text)
