"""The process that `ProcessExecutor` starts: `python -m sirius_dspy.executors.worker`.

It reads messages from standard input and writes others to standard output, to which nothing else goes: what programs
print goes to standard error. It ends when its input does, which happens whenever the process dies that started it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from sirius_dspy.executors.frames import Sender, receive
from sirius_dspy.executors.runner import Runner


def main() -> None:
    """Serve until there is nobody to serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it decides what Ctrl-C means
    requests, answers = os.fdopen(os.dup(0), "rb"), Sender(os.fdopen(os.dup(1), "wb", buffering=0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    _serve(requests, answers)
    os._exit(0)  # threads may be waiting for an LM


def _serve(requests: Any, answers: Sender) -> None:
    def note_usage(number: int, lm: str, entry: Mapping[str, Any]) -> None:
        answers.send("usage", number, lm, dict(entry))

    runner = Runner(note_usage)
    with suppress(OSError):
        answers.send("ready", 0)
    while (message := receive(requests)) is not None:
        kind, *values = message
        if kind == "run":
            item, number, data, is_again = values
            runner.run(number, data, is_again, partial(_answer, answers, item))
        else:
            getattr(runner, kind)(*values)


def _answer(answers: Sender, item: int, data: bytes) -> None:
    with suppress(OSError):  # the process that asked is gone, and this one will end
        answers.send("answer", item, data)


if __name__ == "__main__":
    main()
