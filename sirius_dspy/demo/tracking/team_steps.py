"""The right steps of teams of all sizes, and the oracle of each step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sirius_dspy.demo.exact_word import is_same_word
from sirius_dspy.demo.steps import AnyStep, GoldStep, output_of
from sirius_dspy.demo.tracking.world import Event, World

_YES, _NO = "yes", "no"


def team_steps(
    world: World, start: str, question: str, told: Iterable[tuple[str, str, str]], agents: int
) -> Iterator[GoldStep]:
    """Yield the steps of a run in which every agent is right.

    Args:
        world: World of the story.
        start: Holder at first.
        question: Question of the story.
        told: For each part, its text, its event as a bare sentence and the holder after it.
        agents: Number of agents of the team.
    """
    holder = start
    for part, event, new_holder in told:
        yield from _STEPS[agents](world, holder, part, event, new_holder)
        holder = new_holder
    yield GoldStep("reporter", {"holder": holder, "question": question}, {"answer": holder})


def is_right(world: World, step: AnyStep) -> bool:
    """Return whether the output of a team's step is right given its own inputs; what cannot be read moves nothing."""
    inputs = {name: str(value) for name, value in step.inputs.items()}
    if step.predictor == "reader":
        event = world.read(inputs["part"])
        return event is not None and is_same_word(output_of(step, "event"), world.write(event))
    if step.predictor == "namer":
        event = world.read(inputs["event"])
        return event is not None and is_same_word(output_of(step, "names"), world.write_names(event))
    if step.predictor == "checker":
        return is_same_word(output_of(step, "moves"), _moves(world, inputs["holder"], _event_in(world, inputs)))
    if step.predictor == "tracker":
        stays = is_same_word(inputs.get("moves", _YES), _NO)
        new_holder = world.move(inputs["holder"], None if stays else _event_in(world, inputs))
        return is_same_word(output_of(step, "new_holder"), new_holder)
    return is_same_word(output_of(step, "answer"), inputs["holder"])


def _two(world: World, holder: str, part: str, event: str, new_holder: str) -> Iterator[GoldStep]:
    yield GoldStep("tracker", {"holder": holder, "part": part}, {"new_holder": new_holder})


def _three(world: World, holder: str, part: str, event: str, new_holder: str) -> Iterator[GoldStep]:
    yield GoldStep("reader", {"part": part}, {"event": event})
    yield GoldStep("tracker", {"holder": holder, "event": event}, {"new_holder": new_holder})


def _four(world: World, holder: str, part: str, event: str, new_holder: str) -> Iterator[GoldStep]:
    names = _names(world, event)
    yield GoldStep("reader", {"part": part}, {"event": event})
    yield GoldStep("namer", {"event": event}, {"names": names})
    yield GoldStep("tracker", {"holder": holder, "names": names}, {"new_holder": new_holder})


def _five(world: World, holder: str, part: str, event: str, new_holder: str) -> Iterator[GoldStep]:
    names = _names(world, event)
    known = {"holder": holder, "names": names}
    moves = _moves(world, holder, world.read_names(names))
    yield GoldStep("reader", {"part": part}, {"event": event})
    yield GoldStep("namer", {"event": event}, {"names": names})
    yield GoldStep("checker", known, {"moves": moves})
    yield GoldStep("tracker", {**known, "moves": moves}, {"new_holder": new_holder})


_STEPS = {2: _two, 3: _three, 4: _four, 5: _five}
"""Number of agents to the steps in which its team follows one part."""


def _names(world: World, event: str) -> str:
    read = world.read(event)
    return "" if read is None else world.write_names(read)


def _moves(world: World, holder: str, event: Event | None) -> str:
    return _NO if is_same_word(world.move(holder, event), holder) else _YES


def _event_in(world: World, inputs: Mapping[str, str]) -> Event | None:
    if "names" in inputs:
        return world.read_names(inputs["names"])
    return world.read(inputs["event"] if "event" in inputs else inputs["part"])
