import logging
from pathlib import Path

import pytest

from sirius_dspy.experiment import Cell, CellEnded, CellStarted, ExperimentEnded, ExperimentStarted
from sirius_dspy.testing.results import make_iteration, make_result
from sirius_dspy.tracking.events import (
    CompileEnded,
    CompileStarted,
    Credited,
    Curated,
    Evaluated,
    IterationEnded,
    Repaired,
    RolledOut,
    StageStarted,
    Tracker,
    Trackers,
    Trained,
    TrainingProgress,
)
from sirius_dspy.trajectory import Repair, Trajectory

EVENTS = {
    "on_experiment_started": ExperimentStarted("e", "id", Path("x"), "lm", (("SiriuS", 0),), (), {}),
    "on_cell_started": CellStarted("SiriuS", 0),
    "on_compile_started": CompileStarted(
        "r", "Team", Path("x"), "sqlite://", {}, {}, {}, "ChatAdapter", 1, 1, [{}], [{}], resumed=False
    ),
    "on_stage_started": StageStarted(1, "collect", 10),
    "on_rolled_out": RolledOut(1, Trajectory("e", (), None, 1.0), True),
    "on_credited": Credited(1, Trajectory("e", (), None, 1.0), Trajectory("e", (), None, 1.0), succeeded=True),
    "on_repaired": Repaired(1, Repair("t", ()), []),
    "on_curated": Curated(1, "a", 3, {}, Path("a.jsonl")),
    "on_training_progress": TrainingProgress(1, "a", 1, 2, 0.5),
    "on_trained": Trained(1, "a", "base", "new", 3, [0.5], 1.0, None),
    "on_evaluated": Evaluated(1, 0.5, 10, "program"),
    "on_iteration_ended": IterationEnded(make_iteration()),
    "on_compile_ended": CompileEnded("finished", make_result()),
    "on_cell_ended": CellEnded(Cell("SiriuS", 0, "failed")),
    "on_experiment_ended": ExperimentEnded("failed", error="RuntimeError: disk full"),
}
"""One event of each kind, in the order of an experiment with one compile."""

HOOKS = list(EVENTS)


def test_there_is_an_event_for_each_hook():
    assert sorted(HOOKS) == sorted(name for name in vars(Tracker) if name.startswith("on_"))


def notebook(cls=Tracker):
    """A tracker that writes down every hook of the base class, and its list."""
    heard = []

    def hook(name):
        return lambda self, event: heard.append((name, event))

    return type("Notebook", (cls,), {name: hook(name) for name in HOOKS})(), heard


def broken(hook, error):
    def fail(self, event):
        raise error

    return type("Broken", (Tracker,), {hook: fail})()


def tell_all(tracker):
    for hook in HOOKS:
        getattr(tracker, hook)(EVENTS[hook])


def test_the_base_takes_every_event_and_does_nothing():
    tell_all(Tracker())


def test_every_event_reaches_every_tracker_in_order_and_as_it_is():
    (first, heard_first), (second, heard_second) = notebook(), notebook()
    tell_all(Trackers([first, second]))
    assert heard_first == heard_second == list(EVENTS.items())
    assert all(event is EVENTS[hook] for hook, event in heard_first)


def test_trackers_are_told_in_the_order_given():
    order = []

    class Named(Tracker):
        def __init__(self, name):
            self.name = name

        def on_evaluated(self, event):
            order.append(self.name)

    Trackers([Named("b"), Named("a")]).on_evaluated(EVENTS["on_evaluated"])
    assert order == ["b", "a"]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_tracker_that_raises_is_logged_once_and_left_alone(hook, caplog):
    quiet, heard = notebook()
    trackers = Trackers([broken(hook, RuntimeError("disk full")), quiet])
    with caplog.at_level(logging.ERROR, logger="sirius_dspy.tracking.events"):
        tell_all(trackers)
        if hook not in ("on_compile_started", "on_experiment_started"):
            getattr(trackers, hook)(EVENTS[hook])
        [record] = caplog.records
    assert heard[: len(EVENTS)] == list(EVENTS.items())
    assert "Broken" in record.getMessage()
    assert hook in record.getMessage()
    assert "disk full" in caplog.text


def test_a_tracker_that_raises_stays_the_caller_s_and_hears_of_the_next_compile(caplog):
    class FullOnce(Tracker):
        told = 0

        def on_stage_started(self, event):
            self.told += 1
            if self.told == 1:
                raise RuntimeError("disk full")

    fragile = FullOnce()
    trackers = Trackers([fragile])
    tell_all(trackers)
    trackers.on_stage_started(EVENTS["on_stage_started"])
    assert (fragile.told, trackers.trackers) == (1, [fragile])
    tell_all(trackers)
    assert (fragile.told, trackers.trackers) == (2, [fragile])


def test_strict_lets_the_error_through():
    error = RuntimeError("disk full")
    trackers = Trackers([broken("on_trained", error)], strict=True)
    with pytest.raises(RuntimeError, match="disk full"):
        trackers.on_trained(EVENTS["on_trained"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()])
def test_an_interrupt_is_no_error_of_the_tracker(error):
    trackers = Trackers([broken("on_trained", error)])
    with pytest.raises(type(error)):
        trackers.on_trained(EVENTS["on_trained"])
    assert len(trackers.trackers) == 1


def test_trackers_nest():
    inner, heard = notebook()
    tell_all(Trackers([Trackers([inner]), broken("on_trained", ValueError())]))
    assert len(heard) == len(HOOKS)


def test_events_are_frozen():
    for event in EVENTS.values():
        with pytest.raises(AttributeError):
            event.iteration = 5
