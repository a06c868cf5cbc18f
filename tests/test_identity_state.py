"""What does not count in a description: what an object or a function changes while it works."""

from __future__ import annotations

import functools
import heapq
import json
import os
import sys
from typing import Any

import pytest

from sirius_dspy.identity.describe import describe
from sirius_dspy.identity.parts import find_changes
from tests.identity_help import differing


class Busy:
    """Changes itself in every way while it works."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.cache: dict = {}
        self.known: dict = {}
        self.rows: list = []
        self.calls = 0
        self.last = None
        self.store = Store()

    def __call__(self, example, prediction, trace=None):
        self.calls += 1
        self.last = prediction
        self.known[prediction] = example
        self._note(prediction)
        return self.store.get(prediction) and self.weight

    def _note(self, prediction):
        self.rows.append(prediction)

    def set_weight(self, weight):
        self.weight = weight

    def add_rule(self, name, value):
        self.rules = {**getattr(self, "rules", {}), name: value}


class Store:
    def __init__(self) -> None:
        self.found: dict = {}

    def get(self, key):
        return self.found.setdefault(key, 1)


def test_what_an_object_changes_while_it_works_is_no_setting_but_what_its_user_changes_is():
    fresh, used = Busy(), Busy()
    used("example", "prediction")
    assert differing(fresh, used) == []
    used.set_weight(2.0)
    assert differing(fresh, used) == ["`it.weight`: 1.0 -> 2.0"]
    ruled = Busy()
    ruled.add_rule("length", 3)
    assert differing(fresh, ruled) == ['`it.rules`: nothing -> {"length":3}']


def remembered(metric):
    memory: dict = {}

    @functools.wraps(metric)
    def inner(*arguments):
        if arguments not in memory:
            memory[arguments] = metric(*arguments)
        return memory[arguments]

    return inner


COUNT, SEEN = 0, []


def count():
    SEEN.append(1)


@remembered
def counting(example, prediction, trace=None, _answers={}):  # noqa: B006
    global COUNT
    COUNT += 1
    count()
    _answers[example] = prediction
    return len(SEEN)


@functools.lru_cache
def kept(example, prediction):
    return 1.0


@pytest.mark.parametrize("metric", [counting, kept])
def test_functions_that_remember_are_the_same_afterwards(metric):
    before = describe(metric)
    metric("example", "prediction")
    assert find_changes(before, describe(metric)) == []
    assert before["function"] in ("kept", "remembered.<locals>.inner", "inner", "counting")


class Tally:
    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.count = 0
        self.rows: list = []

    def tick(self):
        self.count += 1
        self.rows.append(self.count)


def tick(tally):
    tally.tick()


def load(owner):
    if owner.last is None:
        owner.last = {"weights": 3}


class Working:
    """Has something of every kind that changes; each subclass changes it in another way."""

    kept: list = []  # noqa: RUF012

    def __init__(self, weight: float = 1.0) -> None:
        self.tally, self.tallies, self.named = Tally(weight), [Tally(weight)], {"a": Tally(weight)}
        self.best: list = []
        self.seen: dict = {"n": 0}
        self.last = None

    def note(self, tally, rows):
        tally.count += 1
        rows.append(1)


class ByAnotherName(Working):
    def __call__(self, *_):
        tally, seen, add = self.tally, self.seen, self.best.append
        seen["n"] += 1
        tally.tick()
        add(1)


class InALoop(Working):
    def __call__(self, *_):
        for number, tally in enumerate(self.tallies):
            tally.count += number + 1
        for tally in self.named.values():
            tally.tick()
        self.named["a"].tick()


class ThroughAFunction(Working):
    def __call__(self, *_):
        tick(self.tally)
        load(self)
        heapq.heappush(self.best, 1)
        self.note(self.tallies[0], self.tally.rows)


class ByItsName(Working):
    def __call__(self, *_):
        setattr(self, "last", 1)  # noqa: B010
        self.__dict__["seen"] = {}
        vars(self)["best"] = [2]
        getattr(self, "tally").count += 1  # noqa: B009
        type(self).kept.append(1)
        self.__class__.total = 5


class WhenItIsRead(Working):
    @property
    def model(self):
        if self.last is None:
            self.last = {"loaded": True}
        return self.last

    def __call__(self, *_):
        return self.model


WORKING = [ByAnotherName, InALoop, ThroughAFunction, ByItsName, WhenItIsRead]


@pytest.mark.parametrize("kind", WORKING)
def test_state_is_told_from_settings_however_the_code_reaches_it(kind):
    metric = kind()
    before = describe(metric)
    metric("example", "prediction")
    metric("example", "prediction")
    assert find_changes(before, describe(metric), "it") == []
    assert {line.split(":")[0] for line in differing(kind(1.0), kind(2.0))} >= {"`it.tally.weight`"}


class Copying:
    """Changes copies of its settings only."""

    def __init__(self, words: list) -> None:
        self.words = words

    def __call__(self, *_):
        words = self.words
        words = sorted(words)
        words.append("x")
        number = len(self.words)
        number += 1
        self.words.sort()
        return self.more(self.words)

    def more(self, words):
        words = [*words]
        words.append("y")
        return words


def test_what_changes_copies_of_a_setting_leaves_it_a_setting():
    assert differing(Copying(["a"]), Copying(["b"])) == ["`it.words[0]`: 'a' -> 'b'"]


def test_nothing_is_too_odd_to_be_described():
    class Stubborn:
        def __getattribute__(self, name):
            raise RuntimeError(name)

    loop: list = []
    loop.append({"again": loop})
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    odd = [Stubborn(), loop, deep, object(), iter([]), os.environ, sys, float("nan"), "\ud800", {Stubborn: 1}, b"x"]
    for value in odd:
        assert "0x" not in json.dumps(describe(value))
        assert find_changes(describe(value), json.loads(json.dumps(describe(value)))) == []
