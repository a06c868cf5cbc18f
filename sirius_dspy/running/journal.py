"""Answers of LM calls whose runs have not ended, on disk: a compile that was killed does not pay for them again.

A run goes to the experience library when it ends. Until then its calls are here, one line of JSON each, written as soon
as the call is answered. When a resumed compile begins the run again, the calls find their answers by what they ask: the
same sample of the same run, the same predictor with the same inputs, and the same LM.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sirius_dspy.trajectory import Failure, Step, Usage, digest, to_plain

logger = logging.getLogger(__name__)


class CallJournal:
    """The kept calls of one stage of a compile. Thread-safe.

    Args:
        path: Of the file, which need not exist. Lines that were cut short are passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = dict(_read(path))
        self._file: int | None = None
        self._is_broken = False
        self._lock = threading.Lock()  # protects the two above

    def find(self, key: str) -> Step | None:
        """Return the step that the call was in an earlier process."""
        return self._kept.get(key)

    def read_again(self) -> None:
        """Find the calls, too, that another process has kept meanwhile, which was lost."""
        self._kept = dict(_read(self.path))

    @property
    def usage(self) -> dict[str, Usage]:
        """What the calls of earlier processes consumed, by LM."""
        used: dict[str, Usage] = {}
        for step in self._kept.values():
            used[step.lm] = used.get(step.lm, Usage()) + step.usage
        return used

    def keep(self, key: str, step: Step) -> None:
        """Write down an answered call. A disk that takes no more is no reason to lose the run."""
        line = "\n" + json.dumps(_to_plain(key, step), ensure_ascii=False)
        with self._lock:
            if self._is_broken:
                return
            try:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                _write(self._file, line.encode("utf-8", "surrogatepass"))
            except OSError as error:
                self._is_broken = True
                logger.warning("Calls cannot be kept in %s (%s); a kill would repeat more of them.", self.path, error)

    def close(self, *, delete: bool) -> None:
        """Close the file, and delete it where all its runs have ended."""
        with self._lock:
            self._is_broken = True  # a thread that was left behind writes nothing more
            if self._file is not None:
                os.close(self._file)
                self._file = None
            if delete:
                with suppress(OSError):
                    self.path.unlink(missing_ok=True)


_JOURNAL: ContextVar[CallJournal | None] = ContextVar("sirius_journal", default=None)


def current_journal() -> CallJournal | None:
    """The journal of what this context does; `None` where calls are not kept."""
    return _JOURNAL.get()


@contextmanager
def keep_calls(path: Path) -> Iterator[None]:
    """The context in which recorded calls are kept; the file goes when the block ends without an error."""
    journal = CallJournal(path)
    has_ended = False
    try:
        with use_journal(journal):
            yield
        has_ended = True
    finally:
        journal.close(delete=has_ended)


@contextmanager
def use_journal(journal: CallJournal | None) -> Iterator[None]:
    """The context in which `current_journal` is this one."""
    token = _JOURNAL.set(journal)
    try:
        yield
    finally:
        _JOURNAL.reset(token)


def call_key(
    sample: str,
    twin: tuple[str, str, int],
    signature: str,
    lm: Any,
    kwargs: Mapping[str, Any],
    demos: Sequence[Any],
) -> str:
    """Name a call by what it asks.

    Args:
        sample: See `Sampling.key`.
        twin: Predictor, inputs, and how many equal calls came before.
        signature: Fingerprint of the signature.
        lm: The LM.
        kwargs: Arguments of the call.
        demos: Demonstrations in the prompt.
    """
    settings = {**(getattr(lm, "kwargs", None) or {}), **kwargs}
    asked = {name: value for name, value in settings.items() if name not in _WHERE}
    return digest([sample, *twin, signature, name_of(lm), to_plain(asked), to_plain(list(demos))])


def name_of(lm: Any) -> str:
    """The id of an LM; its text, if it has none."""
    return str(getattr(lm, "model", lm))


_WHERE = ("api_base", "api_key", "api_version", "base_url")
"""Settings that say where weights are served, which may change."""


def _to_plain(key: str, step: Step) -> list[Any]:
    failure = step.failure and [step.failure.kind, step.failure.message, step.failure.completion]
    usage = [step.usage.calls, step.usage.prompt_tokens, step.usage.completion_tokens]
    rest = {name: getattr(step, name) for name in _AS_THEY_ARE}
    return [key, {**rest, "failure": failure, "usage": usage, "others": list(step.others)}]


def _read(path: Path) -> Iterator[tuple[str, Step]]:
    try:
        data = path.read_bytes()
    except OSError:
        return
    for line in data.split(b"\n"):
        with suppress(ValueError, TypeError, KeyError, AttributeError):  # an empty line, or one that was cut short
            key, item = json.loads(line.decode("utf-8", "surrogatepass"))
            failure, usage, others = item.pop("failure"), item.pop("usage"), item.pop("others")
            yield (
                key,
                Step(
                    **item,
                    occurrence=0,
                    inputs={},
                    others=tuple(others),
                    failure=failure and Failure(*failure),
                    usage=Usage(*usage),
                ),
            )


_AS_THEY_ARE = ("predictor", "outputs", "lm", "seconds", "num_demos", "prompt", "finish")
"""What a call that is not made again takes from its step and does not know itself, beside failure, usage and others."""


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
