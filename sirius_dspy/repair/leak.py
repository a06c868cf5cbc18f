"""The leak guard: which repaired texts would teach an agent what it cannot know.

References:
    SiriuS (arXiv:2502.04780) shows its critic the gold answer and rephrases what comes of it; nothing there checks that
    the text does not give the answer away. The rules are ours.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import SettingsError
from sirius_dspy.plain import readable
from sirius_dspy.program import predictor_names
from sirius_dspy.repair.wording import as_written, mentions
from sirius_dspy.running.native import without_ids
from sirius_dspy.trajectory import Step, Values


class Guard(ABC):
    """Decides which edits give too much away. Subclass it and define `leak`."""

    @abstractmethod
    def leak(self, outputs: Values, step: Step, labels: Values, *, answers: bool) -> str:
        """What the edit gives away, in words; empty if nothing.

        Args:
            outputs: The edit.
            step: The step as it was recorded.
            labels: The example's gold fields.
            answers: Whether this step gives the program's answer.
        """

    def check(self, predictors: Collection[str]) -> None:
        """Refuse settings of the wrong kind before anything is paid for; here none is refused.

        Args:
            predictors: Names of the program's predictors.

        Raises:
            SettingsError: The message names the setting.
        """


def check_guard(guard: Guard | None, program: dspy.Module) -> None:
    """Let the guard of an augmenter refuse its settings, if there is one.

    Raises:
        SettingsError: The message names the setting.
    """
    if guard is not None:
        guard.check(list(predictor_names(program)))


GUARD_KIND = checks.optional(checks.instance(Guard, hint=", such as `LeakGuard()`"))
"""The kind that the guard of an augmenter must be of."""


class LeakGuard(Guard):
    """Refuses edits that carry the gold answer ahead, or that talk about a correction that never was.

    Two rules. (1) The edit of an agent that does not give the program's answer must not newly carry the gold answer. An
    answer that stands in the agent's own inputs, or in its first output, is no leak: to copy the right sentence out of
    a text is that agent's work. Case, typography, and whether a number from 2 to 12 is a word do not matter, and keys
    of tables count. A single letter is looked for in its own case, and "A man" or "I think" do not name it. (2) No text
    may speak of feedback, hints, corrections or earlier answers, unless the agent's inputs or its first output do.

    Args:
        traces: Regular expression of rule 2, matched without regard to case.
        answering: Predictors whose own work brings the answer up before the program gives it, such as one that
            calculates what another one only writes down: rule 1 does not apply to them.
    """

    TRACES = (
        r"\b(feedback|hint(?:s|ed)?|(?:begins|starts) with (?:the letter\b|['\"\u201c\u2018])"
        r"|has \d+ (?:letter|word|character)s?"
        r"|critic(?:ism)?|critique|advice|advised|as (?:suggested|instructed|pointed out)|correction"
        r"|corrected|mistakes?|mistaken(?:ly)?|revised|revision"
        r"|(?:earlier|previous|prior|first|initial|original) (?:answer|response|attempt|output)"
        r"|apologi[sz]e|apolog(?:y|ies)|i was wrong|upon re(?:consideration|flection))\b"
    )

    def __init__(self, traces: str = TRACES, answering: Collection[str] = ()) -> None:
        self.traces = traces
        self.answering = answering

    def check(self, predictors: Collection[str]) -> None:
        """Refuse settings of the wrong kind, and predictors that are none.

        Args:
            predictors: Names of the program's.

        Raises:
            SettingsError: The message names the setting.
        """
        kinds = {"traces": checks.pattern("a regular expression"), "answering": checks.NAMES}
        checks.check("LeakGuard", vars(self), kinds)
        if unknown := sorted(set(self.answering) - set(predictors)):
            raise SettingsError(f"`answering` of LeakGuard names {unknown}; the predictors are {list(predictors)}.")

    def leak(self, outputs: Values, step: Step, labels: Values, *, answers: bool) -> str:
        """What the edit gives away, in words; empty if nothing.

        Args:
            outputs: The edit.
            step: The step as it was recorded.
            labels: The example's gold fields.
            answers: Whether this step gives the program's answer, so that rule 1 does not apply.
        """
        edited = _all_text(outputs.values())
        recorded = _all_text([*step.inputs.values(), *(step.outputs or {}).values()])
        if trace := self._trace(edited, recorded):
            return f"speaks of a correction: {trace!r}"
        for gold in () if answers or step.predictor in self.answering else _golds(labels):
            if mentions(edited, gold) and not mentions(recorded, gold):
                return f"newly carries the gold answer {gold!r}"
        return ""

    def _trace(self, text: str, recorded: str) -> str:
        phrases = (match.group(0) for match in re.finditer(self.traces, text, re.IGNORECASE))
        return next((phrase for phrase in phrases if phrase.casefold() not in recorded.casefold()), "")


def mentions_gold(text: Any, gold: Values) -> bool:
    """Whether a text, or plain values, hold each of these gold values as words or numbers of their own."""
    written, golds = _text(text), _golds(gold)
    return bool(golds) and all(mentions(written, value) for value in golds)


def find_sentence(values: Values, gold: str) -> str:
    """Return the first sentence in some values that holds a gold answer, preferably no question; empty if none does."""
    found = [sentence for sentence in split_sentences(values) if gold and mentions(sentence, gold)]
    return min(found, key=lambda sentence: sentence.endswith("?"), default="")


def split_sentences(values: Values) -> list[str]:
    """Return the sentences in some values, each once."""
    sentences = (sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+|\n+", _text(values)))
    return list(dict.fromkeys(sentence for sentence in sentences if sentence))


def leaves(value: Any) -> Iterator[Any]:
    """Yield the values in a plain value, without keys."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def _golds(labels: Values) -> list[str]:
    """Label values that can be recognized in a text, also those in lists of accepted answers."""
    return [text for value in leaves(readable(labels)) if value is not None and (text := as_written(value).strip())]


def _text(value: Any) -> str:
    return "\n".join(map(str, leaves(readable(without_ids(value)))))


def _all_text(values: Iterable[Any]) -> str:
    """The texts in some values, with the keys of tables in them."""
    plain = readable(without_ids(list(values)))
    return "\n".join(map(str, [*leaves(plain), *_keys(plain)]))


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from map(str, value)
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else ():
        yield from _keys(item)
