"""Writes stories of a world."""

from __future__ import annotations

import random
from collections.abc import Sequence

import dspy

from sirius_dspy.demo.generated import key_of
from sirius_dspy.demo.tracking.world import Event, World

_SWAPS = 0.5
"""In a world of swaps, share of the events that concern the holder."""
_MOVES = 0.35
"""In the other worlds, share of the events that move the thing."""
_TRAPS = 0.1
"""There, share of the remaining events that name the holder as the place to which others move. With both shares, the
second place of the last event is the answer of 42 % of the stories; higher ones would make it a good guess."""


def write_story(world: World, holders: int, num_events: int, source: random.Random) -> dspy.Example:
    """Write a story with its question.

    Args:
        world: Words of the story.
        holders: Number of different holders in the story.
        num_events: Number of events, each in a part of its own.
        source: Source of chance.
    """
    cast = source.sample(world.holders, holders)
    thing, start = source.choice(world.things), source.choice(cast)
    events, holder = [], start
    for _ in range(num_events):
        events.append(_choose(world, cast, holder, source))
        holder = world.move(holder, events[-1])
    parts = [_tell(world, event, cast, source) for event in events]
    question = world.question.format(thing=thing)
    key = key_of(" ".join([world.name, start, *map(world.write, events), question]))
    example = dspy.Example(start=start, parts=parts, question=question, answer=holder, dspy_key=key)
    return example.with_inputs("start", "parts", "question")


def _choose(world: World, cast: Sequence[str], holder: str, source: random.Random) -> Event:
    others = [name for name in cast if name != holder]
    first, second = source.sample(others, 2)
    if source.random() < (_SWAPS if world.is_swap else _MOVES):
        return source.choice([Event(holder, first), Event(first, holder)]) if world.is_swap else Event(holder, first)
    if not world.is_swap and source.random() < _TRAPS:
        return Event(first, holder)
    return Event(first, second)


def _tell(world: World, event: Event, cast: Sequence[str], source: random.Random) -> str:
    sentence = world.write(event).removesuffix(".")
    if source.random() < 0.5:
        sentence = f"{source.choice(world.openings)} {_continue(sentence, event)}"
    if source.random() < 0.4:
        sentence += source.choice(world.endings)
    sentences = [f"{sentence}."]
    if source.random() < 0.4:
        aside = source.choice(world.asides).format(holder=source.choice(cast))
        sentences.insert(source.randrange(2), aside)
    return " ".join(sentences)


def _continue(sentence: str, event: Event) -> str:
    """Write the sentence as it stands after an opening: names keep their capital letter."""
    return sentence if sentence.startswith(event.first) else sentence[0].lower() + sentence[1:]
