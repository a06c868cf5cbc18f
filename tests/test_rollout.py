"""A program over many examples: what is scored, what stops everything, and what threads may do."""

import contextvars
import itertools
import logging
import signal
import threading
import time
from dataclasses import replace
from fractions import Fraction

import dspy
import numpy
import pytest
from dspy.lm15 import AuthError, BillingError, ContextLengthError, InvalidRequestError, UnsupportedModelError

from sirius_dspy.errors import MetricError, PromptTooLongError, RolloutError, SiriuSError, UnrecordableCallError
from sirius_dspy.graph.agents import AgentGraph
from sirius_dspy.graph.wiring import Agent
from sirius_dspy.program import program_fingerprint
from sirius_dspy.running.parallel import parallel_map
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, chat_reply
from sirius_dspy.trajectory import Step, Trajectory, example_key
from tests.team import Team, exact_match, extend, questions

PATIENCE = 10
"""Seconds after which a test gives up on another thread; none of them takes a second."""


pytestmark = pytest.mark.usefixtures("chat_adapter")


def play(prompt):
    """Answer each question with itself."""
    return chat_reply(**{"facts" if prompt.asks_for("facts") else "answer": prompt.field("question")})


def team(play=play, **settings):
    program = Team()
    program.set_lm(ScriptedLM(play, num_retries=0, **settings))
    return program


def run_one(metric=exact_match, program=None, **settings):
    return Rollouts(metric, **settings).run_one(program or team(), Task(questions(1)[0]))


# Scores


@pytest.mark.parametrize(
    ("value", "reward"),
    [
        (1, 1.0),
        (0.25, 0.25),
        (-3, -3.0),
        (True, 1.0),
        (False, 0.0),
        (Fraction(1, 2), 0.5),
        (numpy.float32(0.5), 0.5),
        (numpy.int64(2), 2.0),
        (numpy.bool_(True), 1.0),
        (numpy.array([0.5]), 0.5),
        (dspy.Prediction(score=0.75), 0.75),
        (dspy.Prediction(score=numpy.float64(0.75), feedback="fine"), 0.75),
    ],
    ids=repr,
)
def test_a_metric_returns_a_number_of_any_kind(value, reward):
    trajectory = run_one(lambda example, prediction: value)
    assert trajectory.reward == reward
    assert type(trajectory.reward) is float
    assert trajectory.rewards == {}


def test_a_metric_gives_agents_rewards_of_their_own():
    value = dspy.Prediction(score=0.5, rewards={"analyst": True, "solver": numpy.float64(-1)})
    trajectory = run_one(lambda example, prediction: value)
    assert (trajectory.reward, trajectory.rewards) == (0.5, {"analyst": 1.0, "solver": -1.0})
    assert [trajectory.reward_of(agent) for agent in ("analyst", "solver", "judge")] == [1.0, -1.0, 0.5]


@pytest.mark.parametrize(
    "value",
    [
        None,
        float("nan"),
        float("inf"),
        "1.0",
        1j,
        [1.0],
        {"score": 1.0},
        numpy.nan,
        numpy.array([0.5, 0.5]),
        dspy.Prediction(),
        dspy.Prediction(answer="x"),
        dspy.Prediction(score=None),
        dspy.Prediction(score="1"),
        dspy.Prediction(score=1.0, rewards={"analyst": None}),
        dspy.Prediction(score=1.0, rewards=[1.0, 0.0]),
    ],
    ids=repr,
)
def test_what_is_no_number_is_an_error_that_names_the_example(value):
    with pytest.raises(MetricError, match=r"(?s)returned .*'question': 'q0'"):
        run_one(lambda example, prediction: value)


def test_a_metric_may_take_two_arguments_or_three():
    seen = []

    class Metric:
        def __call__(self, example, prediction, trace=None):
            seen.append(trace)
            return 1.0

    def keywords(example, prediction, *, strict=True):
        return float(strict)

    assert run_one(Metric()).reward == 1.0
    assert [inputs for _, inputs, _ in seen[0]] == [{"question": "q0"}, {"question": "q0", "facts": "q0"}]
    assert run_one(lambda *arguments: len(arguments)).reward == 3.0
    assert run_one(keywords).reward == 1.0


def test_a_metric_that_cannot_be_called_so_is_an_error():
    with pytest.raises(MetricError, match=r"must take \(example, prediction, trace=None\)"):
        run_one(lambda prediction: 1.0)


def test_a_metric_that_raises_is_a_failed_run():
    trajectory = run_one(lambda example, prediction: prediction.nothing)
    assert trajectory.reward == 0.0
    assert trajectory.failure.kind == "metric raised AttributeError"
    assert "nothing" in trajectory.failure.message
    assert trajectory.prediction == {"answer": "q0"}
    assert len(trajectory.steps) == 2


def test_a_metric_whose_own_lm_refuses_us_ends_everything():
    judge = dspy.Predict("answer -> grade: float")
    judge.set_lm(ScriptedLM([AuthError("no such key")], num_retries=0))
    with pytest.raises(RolloutError, match="LMAuthError"):
        run_one(lambda example, prediction: judge(answer=prediction.answer).grade)


# Runs


def test_a_run_says_where_it_belongs():
    example = questions(1)[0]
    rollouts = Rollouts(exact_match, run="r", iteration=2, seed=5, origin="validation")
    program = team()
    trajectory = rollouts.run_one(program, Task(example, 3))
    assert trajectory.example_key == example_key(example)
    assert trajectory.program == program_fingerprint(program)
    assert (trajectory.run, trajectory.iteration, trajectory.sample, trajectory.seed) == ("r", 2, 3, 5)
    assert (trajectory.origin, trajectory.parent, trajectory.edited) == ("validation", None, None)
    assert (trajectory.reward, trajectory.prediction, trajectory.failure) == (1.0, {"answer": "q0"}, None)
    assert trajectory.seconds > 0


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("well, well", "AdapterParseError"),
        (InvalidRequestError("against the policy"), "LMInvalidRequestError"),
        (ContextLengthError("too long"), "ContextWindowExceededError"),
    ],
    ids=repr,
)
def test_a_program_that_fails_is_a_run_without_reward(reply, kind):
    def moody(prompt):
        if prompt.asks_for("facts"):
            return play(prompt)
        if isinstance(reply, Exception):
            raise reply
        return reply

    trajectory = run_one(lambda example, prediction: pytest.fail("was scored"), team(moody))
    assert (trajectory.reward, trajectory.prediction) == (0.0, None)
    assert trajectory.failure.kind == kind
    assert [step.outputs is None for step in trajectory.steps] == [False, True]


def test_the_first_sample_is_asked_like_the_program_and_the_others_as_told():
    program = team(temperature=0.0)
    rollouts = Rollouts(exact_match, lm_kwargs={"temperature": 1.0}, first_kwargs={"max_tokens": 7})
    for sample in range(3):
        rollouts.run_one(program, Task(questions(1)[0], sample))
    prompts = program.solver.lm.requests
    assert [prompt.temperature for prompt in prompts] == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert len({prompt.seed for prompt in prompts[2:]}) == 4


def test_samples_seeds_iterations_and_examples_are_sampled_apart_and_each_repeats():
    program = team(temperature=1.0)
    first, second = questions(2)

    def seeds(task, **settings):
        before = program.solver.lm.calls
        Rollouts(exact_match, **settings).run_one(program, task)
        return tuple(prompt.seed for prompt in program.solver.lm.requests[before:])

    apart = [
        seeds(Task(first)),
        seeds(Task(first, 1)),
        seeds(Task(second)),
        seeds(Task(first), seed=1),
        seeds(Task(first), iteration=1),
    ]
    assert len({seed for found in apart for seed in found}) == 10
    assert seeds(Task(first)) == apart[0]


def test_demonstrations_are_shown_while_collecting():
    program = team()
    demo = dspy.Example(question="shown", facts="like this").with_inputs("question")
    trajectory = run_one(program=program, demos={"analyst": [demo]})
    assert [step.num_demos for step in trajectory.steps] == [1, 0]
    assert program.analyst.demos == []


def test_one_thread_and_eight_give_the_same_runs():
    def found(num_threads):
        lm = ScriptedLM(lambda prompt: chat_reply(facts=prompt.seed, answer=prompt.seed), temperature=1.0)
        program = Team()
        program.set_lm(lm)
        tasks = [Task(example, sample) for example in questions(6) for sample in range(2)]
        runs = Rollouts(exact_match, run="r", num_threads=num_threads).run_all(program, tasks)
        return {task.key: trajectory.id for task, trajectory in runs}

    assert found(1) == found(8)
    assert len(set(found(1).values())) == 12


def test_a_run_is_the_same_whichever_of_its_concurrent_calls_began_first():
    calls = [Step("worker", n, {"part": n}, {"done": n}, "lm", started=n, ended=n + 2) for n in range(2)]
    swapped = [replace(call, occurrence=1 - n, started=1 - n) for n, call in enumerate(calls)]
    first, again = (Trajectory("key", tuple(steps), None, 1.0) for steps in (calls, swapped[::-1]))
    assert first.id == again.id
    assert first.id != Trajectory("key", tuple(calls[:1]), None, 1.0).id


# What stops everything


@pytest.mark.parametrize("error", [AuthError("x"), BillingError("x"), UnsupportedModelError("x")], ids=repr)
def test_an_lm_that_refuses_us_stops_everything_after_what_is_in_flight(error):
    both_started = threading.Barrier(2)

    def refusing(prompt):
        if prompt.asks_for("facts") and prompt.field("question") in ("q0", "q1"):
            both_started.wait(PATIENCE)
        if prompt.field("question") == "q1":
            raise error
        return play(prompt)

    program = team(refusing)
    found = []
    with pytest.raises(RolloutError, match=r"(?s)LM\w+Error: .*finished rollouts are kept") as caught:
        extend(found, Rollouts(exact_match, num_threads=2).run_all(program, map(Task, questions(40))))
    kept = [task.example.question for task, _ in found]
    assert "q0" in kept  # was in flight, or done: it is paid for
    assert "q1" not in kept
    asked = {prompt.field("question") for prompt in program.solver.lm.requests}
    assert asked == {*kept, "q1"}  # and nothing else was begun
    assert type(caught.value.__cause__).__name__.startswith("LM")


def test_a_refusal_that_the_program_wraps_is_found():
    class Wrapping(Team):
        def forward(self, question):
            try:
                return super().forward(question)
            except Exception as error:
                raise KeyError("oh") from error

    program = Wrapping()
    program.set_lm(ScriptedLM([AuthError("no such key")], num_retries=0))
    with pytest.raises(RolloutError, match="LMAuthError"):
        run_one(program=program)


def test_a_program_that_cannot_be_recorded_stops_everything():
    class Hiding(Team):
        def forward(self, question):
            with dspy.context(adapter=dspy.ChatAdapter()):
                return super().forward(question)

    program = Hiding()
    program.set_lm(ScriptedLM(play))
    with pytest.raises(UnrecordableCallError, match="adapter"):
        run_one(program=program)


def test_an_error_of_ours_from_inside_the_program_goes_through():
    class Raising(Team):
        def forward(self, question):
            raise SiriuSError("ours")

    with pytest.raises(SiriuSError, match="ours"):
        run_one(program=Raising())


# Threads


def test_threads_inherit_the_callers_context():
    variable = contextvars.ContextVar("variable")
    variable.set("mine")
    with dspy.context(lm="an lm", temperature=0.3):
        found = dict(parallel_map(lambda item: (variable.get(), dspy.settings.lm), range(4), 2))
    assert set(found.values()) == {("mine", "an lm")}


def test_what_a_thread_sets_stays_in_its_item():
    variable = contextvars.ContextVar("variable", default=None)

    def function(item):
        before = variable.get()
        variable.set(item)
        return before

    assert set(dict(parallel_map(function, range(20), 2)).values()) == {None}


class Callback(dspy.utils.BaseCallback):
    pass


class Autolog(dspy.utils.BaseCallback):
    __module__ = "mlflow.dspy.callback"


def test_rollouts_leave_mlflows_autolog_out_and_keep_other_callbacks():
    mine = Callback()
    with dspy.context(callbacks=[mine, Autolog()]):
        found = dict(parallel_map(lambda item: list(dspy.settings.callbacks), [1], 1))
        assert len(dspy.settings.callbacks) == 2
    assert found == {1: [mine]}


def test_results_come_with_their_items_as_they_finish():
    second_is_out = threading.Event()

    def function(item):
        if item == "first":
            assert second_is_out.wait(PATIENCE)
        return item.upper()

    found = []
    for pair in parallel_map(function, ["first", "second"], 2):
        found.append(pair)
        second_is_out.set()
    assert found == [("second", "SECOND"), ("first", "FIRST")]
    assert list(parallel_map(function, [], 2)) == []


def test_the_error_of_the_earliest_item_is_the_one_raised():
    go = threading.Event()
    ended = threading.Semaphore(0)

    def function(number):
        try:
            if number and go.wait(PATIENCE):
                raise ValueError(f"item {number}")
        finally:
            ended.release()

    results = parallel_map(function, range(9), 9)
    assert next(results) == (0, None)
    go.set()
    assert all(ended.acquire(timeout=PATIENCE) for _ in range(9))
    time.sleep(0.05)  # the last future is done a moment after its function
    with pytest.raises(ValueError, match="item 1"):
        next(results)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_two_items_per_thread_are_taken_ahead(threads):
    taken, ahead = [], []

    def items():
        for item in itertools.count():
            taken.append(item)
            yield item

    for number, _ in enumerate(parallel_map(lambda item: item, items(), threads)):
        ahead.append(len(taken) - number)  # with the one just yielded
        if number == 50:
            break
    assert max(ahead) <= 2 * threads


def test_the_number_of_threads_is_dspys_unless_it_is_given():
    threads, three_at_once = set(), threading.Barrier(3)

    def function(item):
        threads.add(threading.current_thread())
        three_at_once.wait(PATIENCE)  # breaks with fewer threads

    with dspy.context(num_threads=3):
        list(parallel_map(function, range(12)))
    assert len(threads) == 3


def test_a_caller_who_leaves_early_starts_nothing_more():
    started, threads = [], set()

    def function(item):
        started.append(item)
        threads.add(threading.current_thread())

    results = parallel_map(function, itertools.count(), 2)
    next(results)
    results.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(started) <= 5


def test_an_error_is_raised_after_what_is_in_flight():
    both_started, stopped, started = threading.Barrier(2), threading.Event(), []

    def function(item):
        started.append(item)
        if item < 2:
            both_started.wait(PATIENCE)
        if item == 0:
            raise ValueError("item 0")
        assert stopped.wait(PATIENCE)
        return "paid for"

    found = []
    with pytest.raises(ValueError, match="item 0"):
        extend(found, parallel_map(function, range(100), 2, on_stop=stopped.set))
    assert dict(found) == dict.fromkeys(set(started) - {0}, "paid for")
    assert 1 in started
    assert len(started) <= 4  # a free thread may have been faster than the caller, with what was taken already


def interrupt_main():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def test_an_interrupt_waits_for_what_is_in_flight_and_yields_it():
    started, stopped = [], threading.Event()

    def function(item):
        started.append(item)
        if item == 1:
            time.sleep(0.05)  # until the caller waits, which nothing tells
            interrupt_main()
        assert stopped.wait(PATIENCE)
        return "paid for"

    found = []
    with pytest.raises(KeyboardInterrupt):
        extend(found, parallel_map(function, range(100), 2, on_stop=stopped.set))
    assert sorted(found) == [(0, "paid for"), (1, "paid for")]
    assert sorted(started) == [0, 1]


def test_a_second_interrupt_does_not_wait():
    release = threading.Event()

    def function(item):
        if item == 0:
            for _ in range(2):
                time.sleep(0.05)
                interrupt_main()
        return release.wait(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        list(parallel_map(function, range(100), 2))
    assert not release.is_set()
    release.set()


def test_an_interrupt_does_not_cut_off_a_caller_who_keeps_a_result():
    kept = []

    def keep_all():
        for item, _ in parallel_map(lambda item: item, range(100), 2):
            if item == 3:
                interrupt_main()
            time.sleep(0.01)  # an interrupt that is not held back comes here
            kept.append(item)

    with pytest.raises(KeyboardInterrupt):
        keep_all()
    assert 3 in kept
    assert len(kept) < 20


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_second_interrupt_does_not_wait_wherever_it_comes(is_announced):
    """While the first one is announced, or while the caller keeps a result."""
    release, is_waiting = threading.Event(), threading.Event()

    def function(item):
        if item:
            is_waiting.set()
            release.wait(PATIENCE)

    def keep_all():
        for _ in parallel_map(function, range(100), 2):
            assert is_waiting.wait(PATIENCE)
            interrupt_main()
            if not is_announced:
                interrupt_main()

    class Interrupting(logging.Handler):
        def emit(self, record):
            interrupt_main()

    logger, handler = logging.getLogger("sirius_dspy.running.parallel"), Interrupting()
    logger.addHandler(handler)
    with pytest.raises(KeyboardInterrupt):
        keep_all()
    logger.removeHandler(handler)
    assert not release.is_set()
    release.set()


def test_an_interrupt_while_a_caller_leaves_early_is_not_lost():
    go = threading.Event()

    def function(item):
        if item:
            assert go.wait(PATIENCE)
            interrupt_main()
            time.sleep(0.01)

    results = parallel_map(function, range(2), 2)
    next(results)
    go.set()
    with pytest.raises(KeyboardInterrupt):
        results.close()


def test_the_handler_of_interrupts_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    first, second = (parallel_map(lambda item: item, range(3), 2) for _ in range(2))
    next(first)
    next(second)
    first.close()
    second.close()
    with pytest.raises(KeyboardInterrupt):
        interrupt_main()
    list(parallel_map(lambda item: item, range(3), 2))
    signal.signal(signal.SIGINT, before)


# The identity of a program


def fingerprint(change=None):
    program = Team()
    if change is not None:
        change(program)
    return program_fingerprint(program)


def with_signature(signature):
    def change(program):
        program.solver.signature = signature

    return change


SOLVER = dspy.Signature("question, facts -> answer")


@pytest.mark.parametrize(
    "change",
    [
        with_signature(SOLVER.with_instructions("Answer in one word.")),
        with_signature(dspy.Signature("question, facts -> answer: int")),
        with_signature(dspy.Signature("question, facts -> reply")),
        with_signature(dspy.Signature("facts, question -> answer")),
        with_signature(SOLVER.with_updated_fields("answer", desc="one word")),
        with_signature(dspy.Signature("question -> facts, answer")),
        lambda program: setattr(program, "checker", dspy.Predict("answer -> fine: bool")),
    ],
)
def test_the_fingerprint_changes_with_what_agents_are_asked(change):
    assert fingerprint(change) != fingerprint()


def test_the_fingerprint_stays_with_other_weights_and_demonstrations():
    def change(program):
        program.set_lm(ScriptedLM(play, model="scripted/other"))
        program.solver.demos = [dspy.Example(question="q", facts="f", answer="a")]

    assert fingerprint(change) == fingerprint(with_signature(SOLVER)) == fingerprint()


def test_two_programs_with_equal_predictors_are_two():
    class Other(Team):
        pass

    assert program_fingerprint(Other()) != fingerprint()


def test_who_reads_whom_in_a_graph_is_part_of_the_program():
    def graph(source):
        first, second = dspy.Predict("question -> facts"), dspy.Predict("question -> doubts")
        third = Agent(dspy.Predict("notes -> answer"), reads={"notes": source})
        fourth = Agent(dspy.Predict("notes -> remark"), reads={"notes": {"facts": "doubts", "doubts": "facts"}[source]})
        return AgentGraph(
            "question -> answer, remark", {"first": first, "second": second, "third": third, "fourth": fourth}
        )

    assert program_fingerprint(graph("facts")) == program_fingerprint(graph("facts").deepcopy())
    assert program_fingerprint(graph("facts")) != program_fingerprint(graph("doubts"))


def test_a_refusal_that_the_program_swallows_still_ends_the_rollouts():
    class Swallowing(dspy.Module):
        def __init__(self):
            super().__init__()
            self.answer = dspy.Predict("question -> answer")

        def forward(self, question):
            try:
                return self.answer(question=question)
            except Exception:
                return dspy.Prediction(answer="none")

    program = Swallowing()
    program.set_lm(ScriptedLM([AuthError("wrong key")] * 3))
    example = dspy.Example(question="?", answer="!").with_inputs("question")
    with pytest.raises(RolloutError, match="wrong key"):
        list(Rollouts(lambda example, prediction, trace=None: 0.0, num_threads=1).run_all(program, [Task(example)]))


def test_one_prompt_too_long_for_a_local_model_is_one_failed_run():
    def answer(prompt):
        if "long" in prompt.user:
            raise ContextLengthError("too long") from PromptTooLongError("9000 tokens, the window has 8192")
        return chat_reply(answer="!")

    program = dspy.Predict("question -> answer")
    program.set_lm(ScriptedLM(answer))
    tasks = [Task(dspy.Example(question=text).with_inputs("question")) for text in ("long", "short")]
    runs = [run for _, run in Rollouts(lambda example, prediction, trace=None: 1.0).run_all(program, tasks)]
    assert sorted(run.reward for run in runs) == [0.0, 1.0]
