"""Fine-tuning through providers: the toy one, and OpenAI's with its real client against a server of our own."""

import gc
import json
import signal
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import dspy
import openai
import pytest
from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import find_data_error_chat

from sirius_dspy import Collect, Curator, SiriuS
from sirius_dspy.errors import TrainingError, UnpreparedProgramError
from sirius_dspy.local.lora import LoraOptions
from sirius_dspy.local.provider import LocalProvider
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, ToyLM, TrainerContract, chat_reply
from sirius_dspy.training.trainers import ProviderTrainer, TrainingRequest
from tests.openai_server import FakeOpenAI

# dspy/clients/openai.py uploads `open(data_path, "rb")` and never closes it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*finetune:ResourceWarning")

ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)


def training_set(num_rows=12):
    """Rows as a compile makes them."""
    program = dspy.Predict("question -> answer")
    program.set_lm(ScriptedLM(lambda prompt: chat_reply(answer=f"ja, „{prompt.field('question')}“")))
    dspy.configure(adapter=ADAPTER)
    examples = [dspy.Example(question=f"q{n}\nwhy?").with_inputs("question") for n in range(num_rows)]
    rollouts = Rollouts(lambda example, prediction: 1.0, num_threads=2)
    runs = [run for _, run in rollouts.run_all(program, map(Task, examples))]
    return Curator().curate(program, runs, {"solver": ["self"]}, threshold=1.0)["solver"]


def request(lm, workdir, rows=None, on_progress=lambda step, total, loss: None):
    rows = training_set().chat if rows is None else rows
    return TrainingRequest("solver", lm, rows, workdir, 0, on_progress)


def unable():
    return "solver", dspy.LM("anthropic/claude", num_retries=0)


class TestProviderTrainer(TrainerContract):
    @pytest.fixture
    def trainer(self):
        return ProviderTrainer()

    @pytest.fixture
    def lm(self):
        return ToyLM(skill=lambda prompt: "?")

    @pytest.fixture
    def refused(self):
        return unable()


def test_what_was_learnt_is_what_the_program_asks(tmp_path):
    rows = training_set()
    trained = ProviderTrainer().train(request(ToyLM(), tmp_path, rows.chat))
    program = dspy.Predict("question -> answer")
    program.set_lm(trained)
    with dspy.context(adapter=ADAPTER):
        assert program(question="q7\nwhy?").answer == "ja, „q7\nwhy?“"


def test_a_trainer_of_local_weights_is_told_where_and_reports(tmp_path):
    reports = []
    trained = ProviderTrainer().train(
        request(ToyLM(), tmp_path, on_progress=lambda *report: reports.append((threading.current_thread(), *report)))
    )
    assert trained.folder == tmp_path
    assert [step for _, step, _, _ in reports] == list(range(1, 11))
    assert reports[-1][2:] == (10, 0.0)
    assert threading.main_thread() not in {thread for thread, *_ in reports}


class Recorder(Provider):
    """A provider that writes down what it is given, and then does as told."""

    finetunable = True

    def __init__(self, outcome="made/up"):
        super().__init__()
        self.finetunable, self.outcome, self.given = True, outcome, []

    def finetune(self, job, model, train_data, train_data_format, train_kwargs=None):
        self.given.append((model, train_data, train_data_format, train_kwargs))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome() if callable(self.outcome) else self.outcome


def own(provider, **settings):
    return dspy.LM("made/base", provider=provider, engine=ScriptedLM(["x"]).engine, **settings)


def test_a_hosted_provider_gets_its_options_and_no_others(tmp_path):
    provider = Recorder()
    lm = own(provider, train_kwargs={"n_epochs": 1, "batch_size": 4})
    trained = ProviderTrainer({"n_epochs": 3}).train(request(lm, tmp_path))
    assert trained.model == "made/up"
    ((model, rows, data_format, options),) = provider.given
    assert (model, data_format, options) == ("made/base", "chat", {"n_epochs": 3, "batch_size": 4})
    assert rows == training_set().chat
    assert lm.train_kwargs == {"n_epochs": 1, "batch_size": 4}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # SystemExit in a job's thread
@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (RuntimeError("out of credit."), "of agent 'solver' failed on 12 rows: out of credit"),
        (SystemExit(1), "ended without a result"),
        ("made/base", "returned 'made/base', expected an LM with a new model id"),
        (lambda: None, "returned None"),
    ],
    ids=["error", "exit", "the base", "nothing"],
)
def test_a_job_that_gives_no_new_weights_is_an_error_that_names_the_agent(tmp_path, outcome, reason):
    with pytest.raises(TrainingError, match=reason) as caught:
        ProviderTrainer().train(request(own(Recorder(outcome)), tmp_path))
    assert caught.value.agent == "solver"


def test_a_failed_job_says_how_to_go_on(tmp_path):
    with pytest.raises(TrainingError, match="run the same `compile` again") as caught:
        ProviderTrainer().train(request(ToyLM(fail_training=True), tmp_path))
    assert isinstance(caught.value.__cause__, TrainingError)


@pytest.mark.parametrize(
    "lm",
    [unable()[1], ScriptedLM(["x"]), dspy.LM("openai/gpt-4o-mini", provider=Provider()), "gpt-4o-mini"],
    ids=["other provider", "scripted", "no provider", "no LM"],
)
def test_an_lm_that_cannot_be_trained_is_refused_with_what_to_do(lm):
    if isinstance(lm, str):
        lm = SimpleNamespace(model=lm)
    with pytest.raises(UnpreparedProgramError, match=r"Agent 'judge'.*LocalLM.*SiriuS\(frozen=\['judge'\]\)"):
        ProviderTrainer().check("judge", lm)


def test_a_providers_own_check_is_asked():
    class Choosy(Recorder):
        def check(self):
            raise UnpreparedProgramError("no GPU")

    with pytest.raises(UnpreparedProgramError, match="no GPU"):
        ProviderTrainer().check("solver", own(Choosy()))


def test_an_interrupt_cancels_the_job(tmp_path):
    started, jobs = threading.Event(), []

    class Job(TrainingJob):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            self.cancelled_once = threading.Event()
            jobs.append(self)

        def cancel(self):
            self.cancelled_once.set()
            raise RuntimeError("too late")  # as OpenAI's does, of a job that ended meanwhile

    class Slow(Recorder):
        TrainingJob = Job

        def finetune(self, job, *arguments, **settings):
            started.set()
            job.cancelled_once.wait(10)
            return "made/up"

    provider = Slow()
    provider.TrainingJob = Job
    interrupt_after(started)
    with pytest.raises(KeyboardInterrupt):
        ProviderTrainer().train(request(own(provider), tmp_path))
    (job,) = jobs
    assert job.cancelled_once.is_set()
    job.thread.join(10)


def interrupt_after(event):
    def wait():
        if not event.wait(10):
            return
        time.sleep(0.05)  # until the caller waits
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=wait).start()


def chatty():
    print("[Provider] working")  # noqa: T201  # as DSPy's do
    return "made/up"


def test_prints_of_a_hosted_provider_stay_off_stdout(tmp_path, capsys):
    ProviderTrainer().train(request(own(Recorder(chatty)), tmp_path))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "[Provider] working" in shown.err


def test_a_user_who_prints_progress_of_local_training_still_sees_it(tmp_path, capsys):
    def shown(step, total, loss):
        print("step", step)  # noqa: T201

    ProviderTrainer().train(request(ToyLM(), tmp_path, on_progress=shown))
    assert "step 10" in capsys.readouterr().out


# OpenAI, over HTTP


@pytest.fixture
def openai_at(monkeypatch, tmp_path):
    """Point the `openai` module at a server, keep its files here, and poll it every centisecond instead of 20 s."""
    monkeypatch.setenv("DSPY_FINETUNEDIR", str(tmp_path / "finetune"))
    monkeypatch.setattr(sys.modules["dspy.clients.openai"], "time", SimpleNamespace(sleep=lambda s: time.sleep(0.01)))

    def point(url):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        return dspy.LM("openai/gpt-4o-mini", api_base=url, api_key="sk-test", cache=False, num_retries=0)

    forget_connections()
    yield point
    forget_connections()
    gc.collect()  # DSPy leaves the file that it uploads open; here its warning is expected, see `pytestmark`


def forget_connections():
    """The module makes one client at its first use, with the key and the address of that time, and keeps both."""
    openai._reset_client()
    openai.api_key = openai.base_url = None


def test_openai_learns_only_the_last_reply_of_a_conversation(openai_at, tmp_path):
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": text} for role, text in turns]
    fake = FakeOpenAI(["succeeded"])
    with fake.serving() as url:
        ProviderTrainer().train(request(openai_at(url), tmp_path, [{"messages": messages, "weight": 0.5}] * 10))
    (sent,) = fake.files.values()
    row = json.loads(sent.splitlines()[0])
    assert [message.pop("weight", None) for message in row["messages"]] == [None, None, 0, None, None]
    assert row == {"messages": messages}


def test_a_whole_job_with_the_real_client(openai_at, tmp_path, capsys, monkeypatch):
    fake, rows = FakeOpenAI(), training_set()
    with fake.serving() as url:
        lm = openai_at(url)
        trainer = ProviderTrainer({"n_epochs": 3})
        trainer.check("solver", lm)
        trained = trainer.train(request(lm, tmp_path, rows.chat))
        monkeypatch.delenv("OPENAI_BASE_URL")  # with it, DSPy 3.4 answers through LiteLLM
        assert trained("who are you?") == ["I am ft:gpt-4o-mini:org::ftjob-0"]
        again = trainer.restore(lm, trained.model, tmp_path)
        assert again("and you?") == ["I am ft:gpt-4o-mini:org::ftjob-0"]
        trainer.train(request(trained, tmp_path, rows.chat))  # the next iteration goes on from there
    assert fake.keys == {"Bearer sk-test"}
    first, second = fake.jobs.values()
    assert (first["model"], first["hyperparameters"]) == ("gpt-4o-mini", {"n_epochs": 3})
    assert second["model"] == "ft:gpt-4o-mini:org::ftjob-0"
    assert (lm.model, trained.model) == ("openai/gpt-4o-mini", "openai/ft:gpt-4o-mini:org::ftjob-0")
    arrived = [json.loads(line) for line in fake.files[first["training_file"]].decode().splitlines()]
    assert arrived == rows.chat
    assert len(arrived) == 12
    assert [find_data_error_chat(row) for row in arrived] == [None] * 12
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_job_that_openai_ends_is_an_error(openai_at, tmp_path, status):
    fake = FakeOpenAI(["queued", "running", status])
    with fake.serving() as url:
        lm = openai_at(url)
        with pytest.raises(TrainingError, match=rf"'ftjob-0'.*'solver'.*{status}") as caught:
            ProviderTrainer().train(request(lm, tmp_path))
    assert caught.value.agent == "solver"
    assert "sk-test" not in str(caught.value)


def test_the_reason_that_openai_gives_for_a_failed_job_is_told(openai_at, tmp_path):
    reason = {"code": "invalid_training_file", "message": "Line 3 is flagged", "param": None}
    fake = FakeOpenAI(["running", "failed"], reason)
    with fake.serving() as url:
        lm = openai_at(url)
        with pytest.raises(TrainingError, match=r"OpenAI says: Line 3 is flagged \(invalid_training_file\) Everything"):
            ProviderTrainer().train(request(lm, tmp_path))


@pytest.mark.parametrize("number", [1, 9])
def test_fewer_rows_than_openai_takes_are_refused_before_the_upload(openai_at, tmp_path, number):
    fake = FakeOpenAI()
    with fake.serving() as url:
        lm = openai_at(url)
        with pytest.raises(TrainingError, match=rf"'solver' has {number} training rows.*at least 10") as caught:
            ProviderTrainer().train(request(lm, tmp_path, training_set(number).chat))
        assert ProviderTrainer().train(request(lm, tmp_path, training_set(10).chat)).model.startswith("openai/ft:")
    assert caught.value.agent == "solver"
    assert len(fake.files) == 1


def test_no_agent_is_trained_where_one_has_too_few_rows(openai_at, tmp_path):
    class Team(dspy.Module):
        def __init__(self):
            super().__init__()
            self.often = dspy.Predict("question -> answer")
            self.once = dspy.Predict("question -> answer")

        def forward(self, question):
            self.once(question="always the same")
            return self.often(question=question)

    fake = FakeOpenAI()
    fake.chat = lambda body: {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": chat_reply(answer="ok")},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    fake.routes[-1] = ("POST", r"/v1/chat/completions", fake.chat)
    dspy.configure(adapter=ADAPTER)
    examples = [dspy.Example(question=f"q{number}").with_inputs("question") for number in range(12)]
    with fake.serving() as url:
        program = Team()
        program.set_lm(openai_at(url))
        optimizer = SiriuS(
            lambda example, found: 1.0,
            iterations=1,
            collect=Collect(samples=1),
            augmenter=None,
            trainer=ProviderTrainer(),  # `HostedTrainer` asks for ten rows only at OpenAI itself
            num_threads=2,
            run_dir=tmp_path,
        )
        with pytest.raises(TrainingError, match=r"'once' has 1 training rows"):
            optimizer.compile(program, trainset=examples, valset=examples)
    assert fake.files == {}


def test_openai_is_trained_on_images_and_others_if_they_say_so():
    trainer, toy = ProviderTrainer(), ToyLM()
    assert trainer.trains_on_images(dspy.LM("openai/gpt-4o-mini"))
    assert not trainer.trains_on_images(toy)
    toy.provider.trains_on_images = True
    assert trainer.trains_on_images(toy)


def test_a_server_that_does_not_know_fine_tuning_is_an_error(openai_at, tmp_path, monkeypatch):
    fake = FakeOpenAI()
    fake.routes.clear()
    with fake.serving() as url:
        lm = openai_at(url)
        with pytest.raises(TrainingError, match=r"'solver'.*no route POST /v1/files"):
            ProviderTrainer().train(request(lm, tmp_path))


# DSPy's thread goes on after `cancel` and trips over the future it cannot set any more (dspy/clients/provider.py).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_interrupt_cancels_the_remote_job_and_removes_the_file(openai_at, tmp_path):
    fake = FakeOpenAI(["running"])
    with fake.serving() as url:
        lm = openai_at(url)
        before = set(threading.enumerate())
        interrupt_after(fake.polled)
        with pytest.raises(KeyboardInterrupt):
            ProviderTrainer().train(request(lm, tmp_path, training_set().chat))
        for thread in set(threading.enumerate()) - before:
            if thread.name.endswith("(thread_function_wrapper)"):
                thread.join(10)
    assert fake.cancelled == ["ftjob-0"]
    assert fake.files == {}


def test_without_a_key_for_fine_tuning_the_compile_does_not_begin(openai_at, monkeypatch):
    lm = openai_at("http://127.0.0.1:9/v1")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UnpreparedProgramError, match=r"'solver'.*Set OPENAI_API_KEY"):
        ProviderTrainer().check("solver", lm)
    monkeypatch.setattr(openai, "api_key", "sk-test")
    ProviderTrainer().check("solver", lm)


def test_an_lm_of_another_server_is_not_fine_tuned_at_openai(openai_at, monkeypatch):
    lm = openai_at("http://127.0.0.1:9/v1/")
    ProviderTrainer().check("solver", lm)
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(UnpreparedProgramError, match=r"'http://127\.0\.0\.1:9/v1'.*'https://api\.openai\.com/v1'"):
        ProviderTrainer().check("solver", lm)
    monkeypatch.setattr(openai, "base_url", "http://127.0.0.1:9/v1/")
    ProviderTrainer().check("solver", lm)


def test_a_request_is_a_value(tmp_path):
    asked = request(ToyLM(), tmp_path, rows=())
    assert replace(asked, seed=1).seed == 1
    with pytest.raises(AttributeError):
        asked.seed = 2


class Together(Recorder):
    """Trains agents with the same base in one call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def finetune_all(self, model, train_data, train_kwargs):
        self.calls.append((model, train_data, train_kwargs))
        return [f"{model}-{number}-{len(self.calls)}" for number in range(len(train_data))]


def test_neighbors_with_the_same_base_are_trained_in_one_call(tmp_path):
    provider = Together()
    first, second, other = (own(provider), own(provider), own(Together()))
    asked = [replace(request(lm, tmp_path), agent=name) for lm, name in ((first, "a"), (second, "b"), (other, "c"))]
    trained = list(ProviderTrainer().train_all(asked))
    assert [lm.model for lm in trained[:2]] == [f"{first.model}-0-1", f"{first.model}-1-1"]
    assert len(trained) == 3
    ((model, data, _),) = provider.calls
    assert model == first.model
    assert data == [[dict(row) for row in each.rows] for each in asked[:2]]


def test_providers_that_train_alike_train_together(tmp_path):
    first, second, other = Together(), Together(), Together()
    for provider, likeness in ((first, "a"), (second, "a"), (other, "b")):
        provider.trains_like = likeness
    asked = [replace(request(own(provider), tmp_path), agent="x") for provider in (first, other, second)]
    trainer = ProviderTrainer()
    assert len(list(trainer.train_all(trainer.order(asked)))) == 3
    ((_, data, _),) = first.calls
    assert len(data) == 2
    assert second.calls == []


def test_local_lms_of_one_kind_train_alike():
    one, other = LocalProvider(LoraOptions(rank=4)), LocalProvider(LoraOptions(rank=4))
    assert one.trains_like == other.trains_like
    assert one.trains_like != LocalProvider(LoraOptions(rank=8)).trains_like
    assert one.trains_like != LocalProvider(LoraOptions(rank=4), device="cuda:1").trains_like


def test_a_failed_call_names_all_its_agents(tmp_path):
    class Failing(Together):
        def finetune_all(self, *arguments):
            raise RuntimeError("out of memory")

    lm = own(Failing())
    asked = [replace(request(lm, tmp_path), agent=name) for name in ("a", "b")]
    with pytest.raises(TrainingError, match=r"'a', 'b' failed: out of memory"):
        list(ProviderTrainer().train_all(asked))


@pytest.mark.parametrize("weighs", [True, False])
def test_only_a_provider_that_weighs_rows_receives_weights(tmp_path, weighs):
    provider = Together()
    provider.weighs_rows = weighs
    rows = [{"messages": [], "weight": 0.5}]
    asked = [request(own(provider), tmp_path, rows)] * 2
    list(ProviderTrainer().train_all(asked))
    ((_, data, _),) = provider.calls
    assert data == [rows if weighs else [{"messages": []}]] * 2
    assert rows == [{"messages": [], "weight": 0.5}]


def test_a_subclass_with_its_own_train_is_asked_for_each_agent(tmp_path):
    class Counting(ProviderTrainer):
        def train(self, request):
            agents.append(request.agent)
            return super().train(request)

    agents, provider = [], Together()
    asked = [replace(request(own(provider), tmp_path), agent=name) for name in ("a", "b")]
    lms = Counting().train_all(asked)
    next(lms)
    assert agents == ["a"]
    next(lms)
    assert (agents, provider.calls) == (["a", "b"], [])
