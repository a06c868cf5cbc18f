"""What becomes of a run when something fails: the program, the LM for a moment, the LM for good, the metric."""

import signal
import sqlite3
import threading
import time
from pathlib import Path

import dspy
import pytest
import sqlalchemy
from dspy.lm15 import (
    AuthError,
    BillingError,
    ContextLengthError,
    InvalidRequestError,
    RateLimitError,
    ServerError,
    TimeoutError,
    TransportError,
)
from dspy.utils import exceptions as lm_errors

from sirius_dspy import Augmenter, Collect, CriticAugmenter, ExperienceLibrary, SiriuS, evaluate
from sirius_dspy.errors import (
    AugmenterError,
    MetricError,
    ProgramError,
    RolloutError,
    UnfinishedError,
    UnpreparedProgramError,
)
from sirius_dspy.library.migrations import create_repairs, create_runs, migrate
from sirius_dspy.repair.augmenters import RepairOutcome
from sirius_dspy.running.faults import fault_of, fault_of_call
from sirius_dspy.running.patience import Health, Patience
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.running.unfinished import Unfinished
from sirius_dspy.testing import FaultServer, ScriptedTrainer, ToyLM, chat_reply
from sirius_dspy.trajectory import Attempt, Repair, example_key
from tests.team import exact_match, extend, questions

QUICK = Patience(retries=2, first_wait_s=0.001, outage_s=0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The waits of a compile, at a thousandth of their length."""
    monkeypatch.setattr("sirius_dspy.running.patience.LONGEST_WAIT_S", 0.002)
    dspy.configure(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False))


class Team(dspy.Module):
    def __init__(self):
        super().__init__()
        self.reader = dspy.Predict("question -> note")
        self.thinker = dspy.Predict("note -> thought")
        self.writer = dspy.Predict("thought -> answer")

    def forward(self, question):
        return self.writer(thought=self.thinker(note=self.reader(question=question).note).thought)


def hand_on(prompt):
    for given, asked in (("question", "note"), ("note", "thought"), ("thought", "answer")):
        if prompt.asks_for(asked):
            return chat_reply(**{asked: prompt.field(given)})
    return chat_reply(feedback="hand it on", rewritten=prompt.field("text"))


def team(skill=hand_on, program=None, **settings):
    program = program or Team()
    program.set_lm(ToyLM(skill=skill, num_retries=0, **settings))
    return program


def failing(error, when=lambda prompt: True):
    def skill(prompt):
        if when(prompt):
            raise error
        return hand_on(prompt)

    return skill


def fit(program, data, metric=exact_match, **settings):
    settings = {"iterations": 1, "collect": Collect(samples=1), "augmenter": None, "num_threads": 4, **settings}
    return SiriuS(metric, **settings).compile(program, trainset=data, valset=data)


def stored(run_dir):
    with ExperienceLibrary(Path(run_dir) / "library.sqlite") as library:
        return list(library.trajectories())


# Whose fault it is


def chained(error):
    try:
        try:
            raise error
        except Exception as cause:
            raise KeyError("wrapped") from cause
    except KeyError as wrapped:
        return wrapped


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (lm_errors.LMServerError("x"), "transient"),
        (lm_errors.LMRateLimitError("x"), "transient"),
        (lm_errors.LMTimeoutError("x"), "transient"),
        (lm_errors.LMTransportError("x"), "transient"),
        (lm_errors.LMUnexpectedError("x"), "transient"),
        (lm_errors.LMProviderError("not JSON", status=200), "transient"),
        (lm_errors.LMProviderError("teapot", status=418), "refusal"),
        (lm_errors.LMInvalidRequestError("policy", status=400), "refusal"),
        (lm_errors.LMInvalidRequestError("no such page", status=404), "systemic"),
        (lm_errors.ContextWindowExceededError(), "program"),
        (lm_errors.LMAuthError("x"), "systemic"),
        (lm_errors.LMBillingError("x"), "systemic"),
        (lm_errors.LMNotConfiguredError("x"), "systemic"),
        (lm_errors.LMUnsupportedModelError("x"), "systemic"),
        (ValueError("x"), "program"),
        (ConnectionResetError("a tool's"), "program"),
    ],
    ids=repr,
)
def test_whose_fault_an_error_is(error, fault):
    assert fault_of(error) == fault
    assert fault_of(chained(error)) == fault


def test_a_raw_error_of_the_network_is_the_lms_in_a_call_of_an_lm():
    assert fault_of_call(ConnectionResetError("x")) == "transient"
    assert fault_of_call(ValueError("x")) == "program"


# Runs that do not end


@pytest.mark.parametrize("error", [ServerError, RateLimitError, TimeoutError, TransportError], ids=repr)
def test_a_call_that_fails_for_a_moment_is_made_again_and_the_run_is_the_same(error):
    asked = []

    def moody(prompt):
        asked.append(prompt.text)
        if asked.count(prompt.text) == 1:
            raise error("busy")
        return hand_on(prompt)

    rollouts = Rollouts(exact_match, patience=QUICK)
    tasks = [Task(example) for example in questions(4)]
    assert {run.id for _, run in rollouts.run_all(team(moody), tasks)} == {
        run.id for _, run in rollouts.run_all(team(), tasks)
    }
    assert len(asked) == 24


def test_retries_wait_longer_and_longer_and_as_long_as_the_server_asks():
    patience = Patience(first_wait_s=0.001)
    hinted = lm_errors.LMRateLimitError("x", retry_after=1.5)
    assert 1.5 <= patience.wait_s(1, chained(hinted)) <= 1.7
    assert patience.wait_s(1, lm_errors.LMRateLimitError("x", retry_after=86400.0)) is None
    assert patience.wait_s(1, ServerError("x")) < 0.0011


def test_the_lms_own_retries_count():
    program = team(failing(ServerError("x", retry_after=0)))
    program.set_lm(ToyLM(skill=failing(ServerError("x", retry_after=0)), num_retries=2))
    with pytest.raises(UnfinishedError):
        list(Rollouts(exact_match, patience=QUICK).run_all(program, [Task(questions(1)[0])]))
    assert program.reader.lm.calls == 3


class Swallowing(Team):
    def forward(self, question):
        try:
            return super().forward(question)
        except Exception:
            return dspy.Prediction(answer="I do not know")


class Asking(Team):
    """Calls an LM that is no predictor's."""

    def forward(self, question):
        super().forward(question)
        dspy.settings.lm("anything")
        return dspy.Prediction(answer=question)


def test_a_run_whose_program_caught_the_failure_of_its_lm_has_not_ended():
    program = team(failing(ServerError("down"), lambda prompt: prompt.asks_for("thought")), Swallowing())
    with pytest.raises(UnfinishedError, match="LMServerError"):
        Rollouts(exact_match).run_one(program, Task(questions(1)[0]))


def test_a_run_with_a_reply_that_does_not_parse_has_ended_also_where_the_program_catches_it():
    program = team(lambda prompt: "well, well", Swallowing())
    assert Rollouts(exact_match).run_one(program, Task(questions(1)[0])).failure is None


def test_an_lm_called_directly_is_asked_again_with_the_whole_run():
    failures = iter([ServerError("down"), ServerError("down")])

    def answer(prompt):
        for error in failures:
            raise error
        return "fine"

    direct = ToyLM(skill=answer, num_retries=0)
    with dspy.context(lm=direct):
        ((_, run),) = Rollouts(exact_match, patience=QUICK).run_all(team(program=Asking()), [Task(questions(1)[0])])
    assert (run.reward, direct.calls) == (1.0, 3)


class Doubting(dspy.Module):
    """Asks an LM directly, as often as it is told to, and goes on without its word where it fails."""

    def __init__(self, times):
        super().__init__()
        self.team = Team()
        self.times = times

    def forward(self, question):
        for _ in range(self.times):
            try:
                word = dspy.settings.lm(f"a word on {question}")[0]
                break
            except Exception:
                word = "nothing"
        return self.team(question=question if word == "fine" else word)


@pytest.mark.parametrize("kind", [ServerError, ConnectionResetError, AuthError])
def test_a_failure_of_an_lm_called_directly_is_no_answer_of_a_program_that_catches_it(kind):
    def down(prompt):
        raise kind("down")

    expected = RolloutError if kind is AuthError else UnfinishedError
    with dspy.context(lm=ToyLM(skill=down, num_retries=0)), pytest.raises(expected, match="down"):
        list(Rollouts(exact_match, patience=QUICK).run_all(team(program=Doubting(1)), [Task(questions(1)[0])]))


def test_an_lm_that_a_program_asks_again_until_it_answers_has_not_failed():
    failures = iter([ServerError("down"), ServerError("down")])

    def answer(prompt):
        for error in failures:
            raise error
        return "fine"

    direct, program = ToyLM(skill=answer, num_retries=0), team(program=Doubting(3))
    with dspy.context(lm=direct):
        ((_, run),) = Rollouts(exact_match, patience=QUICK).run_all(program, [Task(questions(1)[0])])
    assert (run.reward, direct.calls, program.team.writer.lm.calls) == (1.0, 3, 3)


@pytest.mark.parametrize("catches", [False, True])
def test_a_metric_whose_judge_fails_scores_nothing(catches):
    judge = dspy.Predict("answer -> grade: float")
    judge.set_lm(ToyLM(skill=failing(ServerError("down")), num_retries=0))

    def metric(example, prediction, trace=None):
        try:
            return judge(answer=prediction.answer).grade
        except Exception:
            if catches:
                return 0.0
            raise

    with pytest.raises(UnfinishedError, match="LMServerError"):
        list(Rollouts(metric, patience=QUICK).run_all(team(), map(Task, questions(2))))


def test_runs_that_do_not_end_are_named_kept_apart_and_made_by_the_next_call(tmp_path):
    ill, data = [True], questions(12)

    def skill(prompt):
        if ill[0] and prompt.field("question") in ("q3", "q7"):
            raise ServerError("down")
        return hand_on(prompt)

    program = team(skill)
    with pytest.raises(
        UnfinishedError, match=r"(?s)2 examples.*2 x LMServerError.*q3.*run the same|Run the same"
    ) as caught:
        fit(program, data, run_dir=tmp_path / "ill", patience=Patience(retries=1))
    lost = {example_key(data[3]), example_key(data[7])}
    assert set(caught.value.examples) == lost
    assert caught.value.reasons == {"LMServerError": 2}
    assert {run.example_key for run in stored(tmp_path / "ill")} == {example_key(item) for item in data} - lost
    with ExperienceLibrary(tmp_path / "ill" / "library.sqlite") as library:
        noted = list(library.unfinished(iteration=0))
    assert {(one.example_key, one.kind, one.origin) for one in noted} == {
        (k, "LMServerError", "validation") for k in lost
    }
    ill[0] = False
    resumed = fit(program, data, run_dir=tmp_path / "ill", patience=Patience(retries=1))
    fit(team(), data, run_dir=tmp_path / "well", patience=Patience(retries=1))
    assert resumed.detailed_results["best_score"] == 1.0
    assert {run.id for run in stored(tmp_path / "ill")} == {run.id for run in stored(tmp_path / "well")}


def compile_with_lost_collecting(run_dir, max_unfinished=0):
    """The valset is fine; of the trainset, q3 never gets an answer."""
    data = questions(6)
    program = team(failing(ServerError("down"), lambda prompt: prompt.field("question") == "q3"))
    optimizer = SiriuS(
        exact_match,
        iterations=1,
        collect=Collect(samples=1),
        augmenter=None,
        run_dir=run_dir,
        patience=Patience(retries=0, max_unfinished=max_unfinished),
    )
    return optimizer.compile(program, trainset=data, valset=data[:2])


def test_a_user_may_go_on_without_some_examples(tmp_path):
    with pytest.raises(UnfinishedError, match="max_unfinished"):
        compile_with_lost_collecting(tmp_path)
    with pytest.warns(UserWarning, match="goes on without"):
        compiled = compile_with_lost_collecting(tmp_path, max_unfinished=1)
    assert compiled.detailed_results["iterations"][1]["agents"]["reader"]["rows"] == 5


@pytest.mark.parametrize("part", ["feedback", "rewritten"])
def test_a_repair_that_does_not_end_is_made_by_the_next_call(part, tmp_path):
    ill = [True]

    def skill(prompt):
        if ill[0] and prompt.asks_for(part):
            raise ServerError("down")
        if prompt.asks_for("thought") and prompt.field("note") == "q1" and not prompt.field("feedback"):
            return chat_reply(thought="no idea")
        return hand_on(prompt)

    def compiled(run_dir):
        return fit(
            team(skill), questions(4), augmenter=CriticAugmenter(), run_dir=run_dir, patience=Patience(retries=0)
        )

    with pytest.raises(UnfinishedError):
        compiled(tmp_path / "ill")
    with ExperienceLibrary(tmp_path / "ill" / "library.sqlite") as library:
        assert list(library.repairs()) == []
        assert [one.origin for one in library.unfinished()] == ["repair"]
    ill[0] = False
    compiled(tmp_path / "ill")
    compiled(tmp_path / "well")
    assert {run.id for run in stored(tmp_path / "ill")} == {run.id for run in stored(tmp_path / "well")}


# An LM that is out of order


@pytest.mark.parametrize("good", [0, 3, 30])
@pytest.mark.parametrize("error", [ServerError("down"), InvalidRequestError("no such parameter")], ids=repr)
def test_an_lm_that_fails_many_times_in_a_row_stops_everything_at_any_time(good, error):
    lock, answered = threading.Lock(), []

    def skill(prompt):
        with lock:
            if len(answered) >= 3 * good:
                raise error
            answered.append(prompt)
        return hand_on(prompt)

    program = team(skill)
    found = []
    rollouts = Rollouts(exact_match, patience=QUICK, num_threads=4)
    with pytest.raises(RolloutError, match=r"in a row.*run the same `compile` again"):
        extend(found, (run for _, run in rollouts.run_all(program, map(Task, questions(200)))))
    assert sum(run.failure is None for run in found) >= good - 3  # those that it broke off in the middle do not count
    assert program.reader.lm.calls < 3 * good + 80


@pytest.mark.parametrize("error", [AuthError("no key"), BillingError("no credit")], ids=repr)
def test_a_refusal_in_the_middle_keeps_what_was_done(error, tmp_path):
    program = team(failing(error, lambda prompt: prompt.field("note") == "q5"))
    with pytest.raises(RolloutError, match="same `compile` again"):
        fit(program, questions(40), run_dir=tmp_path, num_threads=1)
    kept = stored(tmp_path)
    assert len(kept) in (5, 6)  # the next one may have begun
    assert all(run.failure is None for run in kept)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_an_lm_that_never_answers_ends_the_compile_within_the_limit(num_threads, tmp_path):
    release, answered = threading.Event(), []
    program = team(lambda prompt: answered.append(release.wait(60)))
    with pytest.raises(RolloutError, match=r"did not answer within 0\.3 s"):
        fit(program, questions(20), run_dir=tmp_path, num_threads=num_threads, patience=Patience(call_timeout_s=0.3))
    assert answered == []  # nobody waited for an answer
    assert program.reader.lm.calls < 20  # nor was every question tried
    release.set()


def test_one_call_that_hangs_is_one_run_that_does_not_end():
    release = threading.Event()

    def skill(prompt):
        if prompt.field("question") == "q1":
            release.wait(30)
        time.sleep(0.02)
        return hand_on(prompt)

    rollouts = Rollouts(exact_match, patience=Patience(call_timeout_s=0.4), num_threads=2)
    found = []
    with pytest.raises(UnfinishedError, match="TimeLimitError") as caught:
        extend(found, (task.example.question for task, _ in rollouts.run_all(team(skill), map(Task, questions(20)))))
    assert sorted(found) == sorted({f"q{n}" for n in range(20)} - {"q1"})
    assert len(caught.value.examples) == 1
    release.set()


@pytest.mark.parametrize("asked", ["note", "answer"])
def test_one_call_that_hangs_is_told_from_a_server_that_hangs_also_where_nobody_else_is_asking(asked, tmp_path):
    release = threading.Event()

    def skill(prompt):
        if prompt.asks_for(asked) and "q1" in prompt.user:
            release.wait(30)
        return hand_on(prompt)

    with pytest.raises(UnfinishedError, match=r"1 examples .*TimeLimitError"):
        fit(team(skill), questions(3), run_dir=tmp_path, num_threads=1, patience=Patience(call_timeout_s=0.3))
    assert len(stored(tmp_path)) == 2
    release.set()


def _metric_without_number(example, prediction, trace=None):
    return "good"


@pytest.mark.timeout(100)  # half of what the server asks for
@pytest.mark.parametrize(
    ("ends", "metric", "kind"),
    [
        (None, _metric_without_number, MetricError),
        (AuthError("no"), exact_match, RolloutError),
        (KeyboardInterrupt(), exact_match, KeyboardInterrupt),
    ],
)
def test_what_ends_everything_does_not_wait_for_a_server_that_asks_for_patience(ends, metric, kind, tmp_path):
    is_waiting = threading.Event()

    def skill(prompt):
        if prompt.field("question") == "q0":
            is_waiting.set()
            raise RateLimitError("later", retry_after=200.0)
        if prompt.field("question") == "q1":
            is_waiting.wait(10)
            if isinstance(ends, Exception):
                raise ends
            if ends is not None:
                threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
        return hand_on(prompt)

    with pytest.raises(kind):
        fit(team(skill), questions(4), metric, run_dir=tmp_path, num_threads=4)


def test_a_program_that_never_ends_has_a_limit_too():
    release = threading.Event()

    class Endless(Team):
        def forward(self, question):
            release.wait(30 if question == "q0" else 0)
            return super().forward(question)

    rollouts = Rollouts(exact_match, patience=Patience(run_timeout_s=0.3), num_threads=2)
    with pytest.raises(UnfinishedError, match="run_timeout_s"):
        list(rollouts.run_all(team(program=Endless()), map(Task, questions(3))))
    release.set()


@pytest.mark.parametrize(
    ("name", "value"),
    [("retries", -1), ("retries", True), ("max_unfinished", 0.5), ("call_timeout_s", 0), ("run_timeout_s", "10")],
)
def test_settings_of_patience_are_checked(name, value):
    with pytest.raises(UnpreparedProgramError, match=name):
        fit(team(), questions(2), patience=Patience(**{name: value}))


# Bugs


@pytest.mark.parametrize("threads", [1, 8])
def test_a_metric_that_always_raises_is_quoted_after_a_few_runs(threads, tmp_path):
    def metric(example, prediction, trace=None):
        return prediction.anwser == example.answer

    program = team()
    with pytest.raises(
        MetricError, match=r"(?s)AttributeError.*test_failures\.py.*return prediction\.anwser"
    ) as caught:
        fit(
            program,
            questions(100),
            metric,
            collect=Collect(samples=4),
            augmenter=CriticAugmenter(),
            run_dir=tmp_path,
            num_threads=threads,
        )
    assert program.reader.lm.calls <= 15 + 20
    assert isinstance(caught.value.__cause__, AttributeError)
    assert stored(tmp_path) == []  # or the corrected metric would find them done


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_metric_that_raises_on_the_whole_of_a_small_set_is_quoted_too(number, tmp_path):
    def metric(example, prediction, trace=None):
        return prediction.answer == example.answer

    program = team()
    unlabelled = [item.inputs() for item in questions(number)]
    optimizer = SiriuS(metric, iterations=1, collect=Collect(samples=1), run_dir=tmp_path)
    with pytest.raises(MetricError, match=r"(?s)raised the same .*example\.answer"):
        optimizer.compile(program, trainset=questions(8), valset=unlabelled)
    assert program.reader.lm.calls == 3 * number
    assert stored(tmp_path) == []


def test_a_program_that_raises_in_the_same_words_on_a_small_set_is_quoted_and_in_others_is_not():
    class Typed(Team):
        def forward(self, question):
            return dspy.Prediction(answer=int(super().forward(question).answer.removeprefix(self.prefix)))

    program = team(program=Typed())
    program.prefix = ""
    assert evaluate(program, questions(3), exact_match).num_failed == 3  # each of its own word
    program.prefix = None
    with pytest.raises(ProgramError, match="each of the first 3 runs: TypeError"):
        evaluate(program, questions(3), exact_match)


def test_a_run_that_the_metric_stumbles_over_is_kept_where_others_were_kept_before(tmp_path):
    def metric(example, prediction, trace=None):
        return {"q0": 1.0, "q1": 1.0}[prediction.answer]

    def interrupted(prompt):
        if "q2" in prompt.user:
            raise KeyboardInterrupt
        return hand_on(prompt)

    data, ill = questions(3), [True]
    program = team(lambda prompt: interrupted(prompt) if ill[0] else hand_on(prompt))
    with pytest.raises(KeyboardInterrupt):
        fit(program, data, metric, run_dir=tmp_path, num_threads=1)
    ill[0] = False
    assert fit(program, data, metric, run_dir=tmp_path, num_threads=1) is not None
    kinds = [run.failure and run.failure.kind for run in stored(tmp_path) if run.iteration == 0]
    assert sorted(map(str, kinds)) == ["None", "None", "metric raised KeyError"]


def test_a_program_that_always_raises_is_quoted():
    class Broken(Team):
        def forward(self, question):
            return self.writer(thought=self.reader(question=question).nothing)

    with pytest.raises(ProgramError, match=r"(?s)AttributeError.*\.nothing"):
        evaluate(team(program=Broken()), questions(50), exact_match)


def test_replies_that_do_not_parse_are_no_bug():
    found = evaluate(team(lambda prompt: "well, well"), questions(12), exact_match)
    assert (found.num_failed, found.score) == (12, 0.0)


def test_a_metric_that_stumbles_after_it_has_worked_is_no_bug():
    def metric(example, prediction, trace=None):
        return 1.0 / len(example.question.removeprefix("q0"))

    found = evaluate(team(), questions(1) + questions(12)[1:], metric, num_threads=1)
    assert found.num_failed == 1

    def mostly(example, prediction, trace=None):
        return 1.0 / (example.question == "q0")

    assert evaluate(team(), questions(12), mostly, num_threads=1).num_failed == 11


# Broken runs and successes


def penalty(example, prediction, trace=None):
    return -float(prediction.answer != example.answer) * 3


@pytest.mark.parametrize("threshold", [0.0, -1.0, -5.0, 0.5])
def test_a_broken_run_is_no_success_whatever_the_threshold(threshold, tmp_path):
    def skill(prompt):
        return "well, well" if prompt.field("thought") in ("q1", "q2") else hand_on(prompt)

    program = team(skill)
    fit(program, questions(6), lambda e, p, trace=None: 1 + penalty(e, p), threshold=threshold, run_dir=tmp_path)
    runs = [run for run in stored(tmp_path) if run.origin == "rollout"]
    broken = [run for run in runs if run.failure is not None]
    assert len(broken) == 2
    assert not any(run.succeeded(threshold) or run.reward >= threshold for run in broken)
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        assert library.count(origin="rollout", min_reward=threshold) == 4
        assert {run.id for run in library.trajectories(origin="rollout", below=threshold)} == {run.id for run in broken}
        assert next(s for s in library.stats(threshold=threshold) if s.origin == "rollout").num_successes == 4


def test_weights_that_only_break_are_not_kept_where_rewards_are_penalties(tmp_path):
    def wrong(prompt):
        return chat_reply(answer="no") if prompt.asks_for("answer") else hand_on(prompt)

    trainer = ScriptedTrainer({"writer": ToyLM("toy/broken", skill=lambda prompt: "nothing that parses")})
    compiled = fit(
        team(wrong),
        questions(6),
        penalty,
        threshold=-5.0,
        frozen=["reader", "thinker"],
        trainer=trainer,
        run_dir=tmp_path,
    )
    assert compiled.writer.lm.model == "toy/base"
    assert compiled.detailed_results["best_iteration"] == 0


def test_weights_that_mend_what_broke_are_kept_where_rewards_are_penalties(tmp_path):
    """Half of the runs break before, the others are perfect: a mean that took breaking for 0 could not be beaten."""

    def half(prompt):
        is_odd = prompt.field("thought") in ("q1", "q3", "q5")
        return "well, well" if is_odd else hand_on(prompt)

    def trained(prompt):
        return chat_reply(answer=prompt.field("thought") if prompt.field("thought") != "q1" else "no")

    trainer = ScriptedTrainer({"writer": ToyLM("toy/mended", skill=trained)})
    compiled = fit(
        team(half),
        questions(6),
        penalty,
        threshold=0.0,
        frozen=["reader", "thinker"],
        trainer=trainer,
        run_dir=tmp_path,
    )
    assert compiled.writer.lm.model == "toy/mended"


# What programs and metrics may do to values


def test_inputs_and_labels_that_are_changed_in_place_stay_the_callers(tmp_path):
    lock = threading.Lock()  # cannot be copied

    class Greedy(dspy.Module):
        def __init__(self):
            super().__init__()
            self.writer = dspy.Predict("question -> answer")

        def forward(self, lines, box):
            found = self.writer(question=lines.pop())
            box["lines"].append(found.answer)
            return found

    def metric(example, prediction, trace=None):
        example.gold.append("seen")
        right = prediction.answer in example.lines
        prediction.answer = "changed"
        return right

    data = [
        dspy.Example(lines=[f"a{n}", f"b{n}"], box={"lines": [], "lock": lock}, gold=[]).with_inputs("lines", "box")
        for n in range(3)
    ]
    program = Greedy()
    program.set_lm(ToyLM(skill=lambda prompt: chat_reply(answer=prompt.field("question"))))
    found = evaluate(program, data, metric)
    assert found.score == 1.0
    assert [run.prediction for run in found.trajectories] == [{"answer": f"b{n}"} for n in range(3)]
    assert [(item.lines, item.box["lines"], item.gold) for item in data] == [
        ([f"a{n}", f"b{n}"], [], []) for n in range(3)
    ]
    assert [run.example_key for run in found.trajectories] == [example_key(item) for item in data]


def test_evaluation_scores_as_dspy_does(tmp_path):
    seen = []

    def strict(example, prediction, trace=None):
        seen.append(trace)
        return 0.5 if trace is None else 0.0

    assert evaluate(team(), questions(4), strict).score == 0.5
    assert seen == [None] * 4
    assert evaluate(team(), questions(2), lambda example, prediction, trace: trace is None).score == 1.0
    with pytest.raises(RuntimeError, match="None of"):
        fit(team(), questions(4), strict, threshold=0.5, run_dir=tmp_path)
    assert {run.reward for run in stored(tmp_path) if run.origin == "validation"} == {0.5}
    assert {run.reward for run in stored(tmp_path) if run.origin == "rollout"} == {0.0}


@pytest.mark.parametrize("name", ["seler", "buyer.predict", ""])
def test_rewards_for_unknown_agents_are_an_error_at_once(name, tmp_path):
    program = team()
    rewards = {"reader": 1.0, name: 0.0}
    with pytest.raises(MetricError, match=r"no agents of this program.*'reader'"):
        fit(
            program,
            questions(40),
            lambda e, p, trace=None: dspy.Prediction(score=1.0, rewards=rewards),
            run_dir=tmp_path,
        )
    assert program.reader.lm.calls <= 15


def test_rewards_may_name_agents_and_predictors(tmp_path):
    rewards = {"team": 1.0, "writer": 0.0}
    compiled = fit(
        team(),
        questions(4),
        lambda e, p, trace=None: dspy.Prediction(score=1.0, rewards=rewards),
        agents={"team": ["reader", "thinker"]},
        run_dir=tmp_path,
    )
    rows = {agent: entry["rows"] for agent, entry in compiled.detailed_results["iterations"][1]["agents"].items()}
    assert rows == {"team": 8, "writer": 0}


# Augmenters


def test_an_edit_of_what_is_no_part_of_the_program_is_refused_before_it_is_stored(tmp_path):
    class Astray(Augmenter):
        def repair(self, failed, example, context):
            attempt = Attempt(0, "<Predict>", "failed")
            return RepairOutcome(Repair(failed.id, (attempt,), failed.run, failed.iteration), ())

    def skill(prompt):
        return chat_reply(answer="no") if prompt.field("thought") == "q1" else hand_on(prompt)

    with pytest.raises(AugmenterError, match=r"Astray.*'<Predict>'.*'reader'"):
        fit(team(skill), questions(4), augmenter=Astray(), run_dir=tmp_path)
    fit(team(skill), questions(4), run_dir=tmp_path.with_name("without"))
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        assert list(library.repairs()) == []


# The library


def test_a_library_of_before_gets_the_table_of_what_did_not_end(tmp_path):
    path = tmp_path / "library.sqlite"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        migrate(connection, [create_runs, create_repairs])
    engine.dispose()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone() == ("2",)
    broken = Unfinished("key", "LMServerError", "down: \x00\ud800", run="r", iteration=1, sample=2, seed=3)
    with ExperienceLibrary(path) as library:
        assert list(library.unfinished()) == []
        library.add_unfinished(broken)
        assert list(library.unfinished(run="r", iteration=1)) == [broken]
        assert list(library.unfinished(run="s")) == []


def test_the_health_of_lms_is_counted_over_all_stages():
    health = Health()
    for _ in range(9):
        health.note_failure("it", None)
    health.note_end()
    for _ in range(9):
        health.note_failure("it", None)
    with pytest.raises(RolloutError, match="10 runs in a row"):
        health.note_failure("it", None)


def test_a_prompt_that_is_too_long_is_that_examples_own():
    program = team(failing(ContextLengthError("too long"), lambda prompt: prompt.field("question") not in (None, "q0")))
    found = evaluate(program, questions(15), exact_match)
    assert found.num_failed == 14


# A server that fails


KINDS = ("500", "429", "reset", "broken", "empty", "void", "cut")


def served(server, data, run_dir, **settings):
    program = Team()
    program.set_lm(server.lm())
    trainer = ScriptedTrainer(lambda request: request.lm.copy(model=f"openai/{request.agent}"))
    return fit(program, data, trainer=trainer, run_dir=run_dir, **settings)


def test_faults_of_a_server_change_nothing(tmp_path):
    data = questions(21)
    with FaultServer(hand_on, retry_after=0.01) as server:
        served(server, data, tmp_path / "whole")
        kinds = {item.question: KINDS[n % len(KINDS)] for n, item in enumerate(data)}
        server.faults = lambda prompt, before: None if before % 2 else kinds[prompt.user.split("\n")[1]]
        served(server, data, tmp_path / "faults")
        assert set(server.failed) == set(KINDS)
    assert {run.id for run in stored(tmp_path / "whole")} == {run.id for run in stored(tmp_path / "faults")}
    assert all(run.failure is None for run in stored(tmp_path / "faults"))


def test_after_an_outage_the_same_call_gives_the_same(tmp_path):
    data = questions(30)
    with FaultServer(hand_on) as server:
        served(server, data, tmp_path / "whole")
        before = server.calls

        def die(prompt, asked):
            server.is_dead = server.calls - before > 45

        server.faults = die
        with pytest.raises(RolloutError, match="in a row"):
            served(server, data, tmp_path / "outage", patience=Patience(outage_s=0))
        kept = {run.id for run in stored(tmp_path / "outage")}
        server.faults, server.is_dead = None, False
        served(server, data, tmp_path / "outage")
    assert kept
    assert kept < {run.id for run in stored(tmp_path / "whole")} == {run.id for run in stored(tmp_path / "outage")}


def test_a_server_that_accepts_and_never_answers(tmp_path):
    with FaultServer(hand_on, lambda prompt, before: "hang") as server:
        with pytest.raises(RolloutError, match="did not answer within"):
            served(server, questions(80), tmp_path, patience=Patience(call_timeout_s=0.5))
        assert server.calls < 80


@pytest.mark.parametrize("disk", [False, True])
def test_a_body_without_a_reply_that_dspy_cached_is_no_answer(disk, tmp_path):
    """DSPy keeps it as an empty text; whoever asks the same again, also in another process, must not take that."""
    dspy.configure_cache(enable_disk_cache=disk, enable_memory_cache=True, disk_cache_dir=str(tmp_path / "cache"))
    with FaultServer(hand_on) as server:
        server.faults = lambda prompt, before: "void" if before == 0 else None
        for _ in range(3):
            program = Team()
            program.set_lm(server.lm().copy(cache=True))
            runs = [
                run for _, run in Rollouts(exact_match).run_all(program, [Task(question) for question in questions(2)])
            ]
            assert all(run.failure is None and run.reward == 1.0 for run in runs)
            if disk:
                dspy.cache.memory_cache.clear()
    assert set(server.failed) == {"void"}
