"""A server that is down for a while is waited for, and hardly asked meanwhile."""

import asyncio
import threading
import time

import dspy
import pytest
from dspy import lm15

from sirius_dspy import Collect, ExperienceLibrary, SiriuS
from sirius_dspy.errors import OutageError, TimeLimitError
from sirius_dspy.executors import ProcessExecutor
from sirius_dspy.running import outage
from sirius_dspy.running.executor import started
from sirius_dspy.running.known import KnownRequest
from sirius_dspy.running.patience import Patience
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import FaultServer, ScriptedTrainer, chat_reply
from tests.team import exact_match, questions


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits and probes at a fraction of their length."""
    monkeypatch.setattr("sirius_dspy.running.patience.LONGEST_WAIT_S", 0.002)
    monkeypatch.setattr(outage, "FIRST_PROBE_S", 0.02)
    monkeypatch.setattr(outage, "LOOK_UP_S", 0.01)
    dspy.configure(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False))


class Outage:
    """Lets a server fail from its n-th call on, for some seconds."""

    def __init__(self, after, seconds, kind="500"):
        self.after = after
        self.seconds = seconds
        self.kind = kind
        self.asked = 0
        self.began = None
        self.lock = threading.Lock()

    def __call__(self, prompt, before):
        with self.lock:
            self.asked += 1
            if self.asked <= self.after:
                return None
            self.began = self.began or time.monotonic()
            return self.kind if time.monotonic() < self.began + self.seconds else None


def predictor(server, **settings):
    program = dspy.Predict("question -> answer")
    program.set_lm(server.lm(**settings))
    return program


def answer(prompt):
    return chat_reply(answer=prompt.field("question"))


def collect(program, number, **settings):
    rollouts = Rollouts(exact_match, **settings)
    return [run for _, run in rollouts.run_all(program, [Task(example) for example in questions(number)])]


@pytest.mark.parametrize(
    ("threads", "kind", "retries"),
    [(1, "500", 0), (1, "reset", 4), (2, "429", 4), (4, "void", 2), (16, "cut", 0), (16, "500", 4)],
)
def test_every_run_ends_and_few_calls_go_out_meanwhile(threads, kind, retries):
    down = Outage(10, 0.6, kind)
    with FaultServer(answer, down, retry_after=0.01) as server:
        runs = collect(predictor(server), 40, num_threads=threads, patience=Patience(retries=retries))
        failed = sum(server.failed.values())
    assert sorted(run.example_key for run in runs) == sorted({run.example_key for run in runs})
    assert len(runs) == 40
    assert all(run.failure is None for run in runs)
    # What shows that the server is down, what is under way then, and probes at growing intervals.
    assert failed <= 3 * (1 + retries) + 8 + threads + 10


def test_a_program_that_catches_everything_stores_nothing_that_did_not_happen():
    class Stubborn(dspy.Module):
        def __init__(self):
            super().__init__()
            self.agent = dspy.Predict("question -> answer")

        def forward(self, question):
            try:
                return self.agent(question=question)
            except Exception:
                return dspy.Prediction(answer="no idea")

    program = Stubborn()
    with FaultServer(answer, Outage(5, 0.5)) as server:
        program.set_lm(server.lm())
        runs = collect(program, 20, num_threads=4)
        assert [run.prediction["answer"] for run in runs].count("no idea") == 0
        server.faults = Outage(0, 1000)
        found = []
        rollouts = Rollouts(exact_match, num_threads=4, patience=Patience(outage_s=0.3))
        rollouts.health.throttles.of(program.agent.lm).breaker.has_answered = True
        with pytest.raises(OutageError, match="answered no call"):
            found.extend(run for _, run in rollouts.run_all(program, [Task(example) for example in questions(20)]))
    assert found == []


def test_a_program_that_awaits_waits_as_well():
    class Awaiting(dspy.Module):
        def __init__(self):
            super().__init__()
            self.agent = dspy.Predict("question -> answer")

        async def aforward(self, question):
            first, _ = await asyncio.gather(*(self.agent.acall(question=text) for text in (question, f"{question}!")))
            return first

    program = Awaiting()
    down = Outage(10, 0.5)
    with FaultServer(answer, down) as server:
        program.set_lm(server.lm())
        runs = collect(program, 20, num_threads=4)
        assert sum(server.failed.values()) < 60
    assert len(runs) == 20
    assert all(run.failure is None for run in runs)


def test_one_request_that_always_fails_is_no_outage():
    def faults(prompt, before):
        return "500" if prompt.field("question") == "q7" else None

    with FaultServer(answer, faults) as server:
        with pytest.warns(UserWarning, match="runs of 1 examples did not end"):
            runs = collect(predictor(server), 20, num_threads=1, max_unfinished=1)
        assert server.failed["500"] == 5
    assert len(runs) == 19


@pytest.mark.parametrize("threads", [1, 4, 16])
@pytest.mark.parametrize("which", [range(24, 40), range(0, 40, 3)], ids=["the last ones", "every third"])
def test_requests_that_always_fail_are_no_outage_even_if_no_other_call_is_left(which, threads):
    ill = {f"q{number}" for number in which}

    def faults(prompt, before):
        return "500" if prompt.field("question") in ill else None

    with FaultServer(answer, faults) as server:
        settings = {"num_threads": threads, "patience": Patience(retries=2), "max_unfinished": len(ill)}
        with pytest.warns(UserWarning, match=f"runs of {len(ill)} examples did not end"):
            runs = collect(predictor(server), 40, **settings)
        # Three tries each, twice, and some more of those that were under way when the server seemed to be down.
        assert server.failed["500"] <= 2 * (3 * len(ill) + 2 * threads + 8)
        probes = server.calls - server.failed["500"] - (40 - len(ill))
        assert 0 <= probes <= len(ill)
    assert len(runs) == 40 - len(ill)


def test_requests_of_a_judge_that_always_fail_are_no_outage():
    def faults(prompt, before):
        return "500" if int((prompt.field("question") or "q0")[1:]) >= 14 else None

    with FaultServer(answer) as server, FaultServer(answer, faults) as court:
        judge = predictor(court)

        def metric(example, prediction, trace=None):
            return judge(question=prediction.answer).answer == example.answer

        rollouts = Rollouts(metric, num_threads=4, patience=Patience(retries=1), max_unfinished=6)
        with pytest.warns(UserWarning, match="runs of 6 examples did not end"):
            runs = list(rollouts.run_all(predictor(server), [Task(example) for example in questions(20)]))
    assert len(runs) == 14


def test_the_time_of_an_outage_is_no_time_of_a_run():
    with FaultServer(answer, Outage(10, 3.0)) as server:
        runs = collect(predictor(server), 30, num_threads=4, patience=Patience(run_timeout_s=1.5))
    assert len(runs) == 30


def compile_team(server, run_dir, **settings):
    return SiriuS(
        exact_match,
        iterations=1,
        collect=Collect(samples=1),
        augmenter=None,
        num_threads=4,
        trainer=ScriptedTrainer(lambda request: request.lm.copy(model=f"openai/{request.agent}")),
        run_dir=run_dir,
        **settings,
    ).compile(predictor(server), trainset=questions(20), valset=questions(20))


def stored(run_dir):
    with ExperienceLibrary(run_dir / "library.sqlite") as library:
        return {run.id for run in library.trajectories()}


def test_a_compile_goes_on_after_an_outage_or_stops_and_resumes(tmp_path, caplog):
    with FaultServer(answer) as server:
        compile_team(server, tmp_path / "whole")
        server.faults = Outage(30, 1.0, "reset")
        compile_team(server, tmp_path / "waited")
        assert "answers again" in caplog.text
        server.faults = Outage(30, 1000)
        with pytest.raises(OutageError, match=r"answered no call for .*LMServerError.*outage_s"):
            compile_team(server, tmp_path / "stopped", patience=Patience(outage_s=0.5))
        assert server.failed["500"] < 60
        assert stored(tmp_path / "stopped") < stored(tmp_path / "whole")
        server.faults = None
        compile_team(server, tmp_path / "stopped", patience=Patience(outage_s=0.5))
    assert stored(tmp_path / "whole") == stored(tmp_path / "waited") == stored(tmp_path / "stopped")


def test_a_key_in_the_error_of_a_server_is_not_shown(caplog):
    secret = "sk-proj-" + "a1B2" * 10
    with FaultServer(answer, Outage(5, 0.3)) as server:
        collect(predictor(server, api_key=secret), 12, num_threads=4)
    assert "answers no call" in caplog.text
    assert secret not in caplog.text


def test_in_other_processes_too():
    with FaultServer(answer, Outage(30, 2.0)) as server, started(ProcessExecutor(3)) as workers:
        runs = collect(predictor(server), 60, num_threads=6, workers=workers)
        assert sum(server.failed.values()) < 150
    assert len(runs) == 60
    assert all(run.failure is None for run in runs)


def test_many_threads_without_retries():
    with FaultServer(answer, Outage(70, 0.6)) as server:
        runs = collect(predictor(server), 150, num_threads=64, patience=Patience(retries=0))
    assert len(runs) == 150


def test_a_probe_that_hangs_does_not_end_the_probing(monkeypatch):
    monkeypatch.setattr(outage, "LONGEST_PROBE_S", 0.3)
    down, hanging = Outage(10, 0.3), threading.Event()

    def faults(prompt, before):
        fault = down(prompt, before)
        if fault is None and down.began and not hanging.is_set():
            hanging.set()
            return "hang"
        return fault

    with FaultServer(answer, faults) as server:
        runs = collect(predictor(server), 30, num_threads=4, patience=Patience(call_timeout_s=3.0, outage_s=30))
    assert hanging.is_set()
    assert len(runs) == 30


def test_a_judge_of_a_metric_is_waited_for_as_well():
    with FaultServer(answer) as server, FaultServer(answer, Outage(10, 0.6)) as court:
        judge = predictor(court)

        def metric(example, prediction, trace=None):
            return judge(question=prediction.answer).answer == example.answer

        rollouts = Rollouts(metric, num_threads=4)
        runs = list(rollouts.run_all(predictor(server), [Task(example) for example in questions(40)]))
        assert server.calls < 40 + 40
        assert sum(court.failed.values()) < 30
    assert len(runs) == 40
    assert all(run.reward == 1 for _, run in runs)


def fail(breaker, call, outage_s=1000):
    with pytest.raises(ConnectionError), breaker.learn(call, outage_s):
        raise ConnectionError


def answered():
    breaker = outage.Breaker("m")
    with breaker.learn(outage.Asked(), 1000):
        pass
    return breaker


def test_failures_of_long_ago_do_not_count(monkeypatch):
    monkeypatch.setattr(outage, "MEMORY_S", 0.1)
    breaker = answered()
    for _ in range(7):
        fail(breaker, outage.Asked())
    time.sleep(0.15)
    fail(breaker, outage.Asked())
    assert not breaker.is_down
    for _ in range(7):
        fail(breaker, outage.Asked())
    assert breaker.is_down
    breaker._probe_at = 0
    breaker.hold_back(
        outage.Asked(), lambda: False, 0.2, lambda known: None
    )  # the wait counts from now, not from the first failure


def test_calls_that_were_given_up_here_say_nothing_about_the_server():
    breaker = answered()
    for _ in range(20):
        with pytest.raises(TimeLimitError), breaker.learn(outage.Asked(), 1000):
            raise TimeLimitError("too long")
    assert not breaker.is_down


def test_a_server_that_asks_the_probe_to_wait_takes_no_time_of_its_run():
    down = Outage(10, 1.0)

    def faults(prompt, before):
        fault = down(prompt, before)
        return "429" if fault and down.asked > 30 else fault

    with FaultServer(answer, faults, retry_after=3.0) as server:
        runs = collect(predictor(server), 30, num_threads=4, patience=Patience(run_timeout_s=2.5))
    assert len(runs) == 30


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
def test_an_lm_of_the_user_that_takes_only_what_adapters_send():
    class Own(dspy.LM):
        def __init__(self, served):
            super().__init__("own/lm", num_retries=0)
            self.served = served

        def forward(self, prompt=None, messages=None, *, temperature=None, rollout_id=None):
            return self.served.forward(messages=[dict(message) for message in messages], temperature=temperature)

    program = dspy.Predict("question -> answer")
    with FaultServer(answer, Outage(10, 0.6)) as server:
        program.set_lm(Own(server.lm()))
        runs = collect(program, 40, num_threads=4, patience=Patience(retries=2))
        assert sum(server.failed.values()) < 32
    assert len(runs) == 40


def test_a_known_request_is_never_answered_from_a_cache():
    class Engine:
        asked = 0

        def complete(self, request):
            self.asked += 1
            message = lm15.Message.assistant([lm15.TextPart("yes")])
            usage = lm15.Usage(input_tokens=1, output_tokens=1)
            return lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    engine = Engine()
    known = KnownRequest(dspy.LM("own/lm", engine=engine, cache=True), "Are you there?")
    for _ in range(2):
        known.send(without=None)
    assert engine.asked == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_judge_that_takes_messages_of_its_own_kind_is_watched_as_well():
    class Own(dspy.BaseLM):
        def forward(self, prompt=None, messages=None, **settings):
            asked = [{"role": role, "content": text} for role, text in messages]
            return server.lm().forward(messages=asked)

    judge = Own("own/lm")
    rollouts = Rollouts(lambda *_: len(judge(messages=[("user", "Is it right?")])), num_threads=1)
    with FaultServer(answer) as server:
        ((_, run),) = rollouts.run_all(predictor(server), [Task(example) for example in questions(1)])
    assert run.reward == 1
    assert rollouts.health.throttles.of(judge).breaker.has_answered
