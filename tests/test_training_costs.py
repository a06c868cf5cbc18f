"""What hosted fine-tuning costs: planned, limited before a job is created, and counted once."""

from __future__ import annotations

import json

import dspy
import pytest

from sirius_dspy import Budget, Collect, Curator, HostedTrainer, ProviderTrainer, SuitableTrainer
from sirius_dspy.errors import SettingsError, TrainingError
from sirius_dspy.optimizer.prices import price_of
from sirius_dspy.optimizer.reading import read_results
from sirius_dspy.testing import Prompt, ScriptedTrainer
from sirius_dspy.training.trainers import TrainingRequest
from tests.openai_server import FakeOpenAI
from tests.test_hosted import KEY, lm_at, quick
from tests.toy import ADAPTER, Doubling, compiled_by, examples, optimizer, skill
from tests.toy import student as toy_student

__all__ = ["quick"]

PRICE = 1000.0
"""US dollars per million tokens, so that a job of the fake server costs 0.90."""

LISTED = "openai/gpt-4.1-nano-2025-04-14"
"""An LM whose calls have a price that everybody knows."""

PRICES = {"openai/toy": PRICE, LISTED: PRICE}
FREE_CALLS = {"openai/": (0.0, 0.0)}
AGENTS = ("doubler", "writer.predict")


class ToyServer(FakeOpenAI):
    """Answers as the toy LM does before it has learned anything."""

    def chat(self, body):
        reply = super().chat(body)
        said = {message["role"]: message["content"] for message in body["messages"]}
        prompt = Prompt(body["model"], said["system"], (("user", said["user"]),), None, None)
        reply["choices"][0]["message"]["content"] = skill(prompt)
        return reply


@pytest.fixture(autouse=True)
def settings(quick):
    dspy.configure(adapter=ADAPTER)


@pytest.fixture
def fake():
    return ToyServer(["succeeded"])


@pytest.fixture
def url(fake):
    with fake.serving() as url:
        yield url


def student(url, model="openai/toy"):
    program = Doubling()
    program.set_lm(dspy.LM(model, api_base=url, api_key=KEY, cache=False, num_retries=0))
    return program


def hosted(**settings):
    return HostedTrainer({"n_epochs": 2}, **{"prices": PRICES, **settings})


def made(run_dir, usd=None, trainer=None, **settings):
    budget = Budget(usd=usd, prices=FREE_CALLS)
    chosen = {"iterations": 1, "augmenter": None, "gate": None, "collect": Collect(samples=1), **settings}
    return optimizer(run_dir, budget=budget, trainer=trainer or hosted(), **chosen)


def compiled(run_dir, url, *arguments, model="openai/toy", **settings):
    optimizer = made(run_dir, *arguments, **settings)
    return optimizer.compile(student(url, model), trainset=examples(), valset=examples(range(2))).detailed_results


def estimate(run_dir, epochs=2):
    """What both jobs cost by their rows, a token being four characters."""
    files = [run_dir / "training" / "iteration-1" / f"{agent}.jsonl" for agent in AGENTS]
    rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    sizes = [sum(len(message["content"]) for row in part for message in row["messages"]) // 4 for part in rows]
    return sum(sizes) * epochs * PRICE / 1e6


@pytest.mark.parametrize("trainer", [hosted(), SuitableTrainer(prices=PRICES)])
def test_jobs_count_as_the_server_reports_and_once(tmp_path, fake, url, trainer):
    for _ in range(2):
        result = compiled(tmp_path, url, 100, trainer, model=LISTED)
        assert result.ended == "finished"
        assert result.usage.usd == pytest.approx(1.8)
        assert result.iterations[1].stages["train"].usd == pytest.approx(1.8)
    assert len(fake.jobs) == 2
    (tmp_path / "stages" / "results.json").unlink()
    assert read_results(tmp_path).usage.usd == pytest.approx(1.8, abs=0.01)  # as a report tells it


def test_jobs_that_do_not_fit_are_not_begun_and_a_larger_budget_goes_on(tmp_path, fake, url):
    first = compiled(tmp_path, url, 1.0)
    assert (first.ended, first.usage.usd, fake.files, fake.jobs) == ("budget", 0.0, {}, {})
    expected = estimate(tmp_path)
    assert f"fine-tuning would cost about {expected:.2g} US dollars" in first.reason
    assert compiled(tmp_path, url, 0.99 * expected).ended == "budget"
    num_chats = len(fake.chats)
    second = compiled(tmp_path, url, 1.01 * expected)
    assert (second.ended, len(fake.jobs)) == ("finished", 2)
    assert second.usage.usd == pytest.approx(1.8)
    trained_on = {chat["model"] for chat in fake.chats[num_chats:]}
    assert "toy" not in trained_on  # no run was made again


def test_a_job_that_is_paid_for_is_taken_up_and_counted_at_any_budget(tmp_path, fake, url):
    fake.statuses = ["running"]
    trainer = hosted(longest_s=1e-3)
    with pytest.raises(TrainingError, match="has not ended"):
        compiled(tmp_path, url, 100, trainer)
    for job in fake.jobs.values():
        job["left"] = ["succeeded"]
    result = compiled(tmp_path, url, 0.5, trainer)
    assert (result.ended, len(fake.jobs)) == ("budget", 2)
    assert result.usage.usd == pytest.approx(1.8)
    assert compiled(tmp_path, url, 2.0, trainer).ended == "finished"
    assert len(fake.jobs) == 2


def test_a_price_that_is_given_later_counts_for_jobs_that_have_ended(tmp_path, fake, url):
    assert compiled(tmp_path, url, None, hosted(prices=None)).usage.usd == 0.0
    result = compiled(tmp_path, url, 100, iterations=2)
    assert result.ended == "finished"
    assert result.usage.usd == pytest.approx(3.6)


def test_calls_of_a_fine_tuned_model_with_an_id_of_its_own_cost_what_its_base_does(tmp_path, fake, url):
    honest = fake.job
    fake.job = lambda name: honest(name) | {"fine_tuned_model": f"model-{name}"}
    optimizer = made(tmp_path)
    optimizer.budget = Budget(usd=100, prices={"openai/toy": (1e4, 1e4)})
    result = optimizer.compile(student(url), trainset=examples(), valset=examples(range(2))).detailed_results
    calls = result.usage.calls
    assert result.usage.usd == pytest.approx(1.8 + 2 * calls / 100)  # a call takes two tokens
    assert result.iterations[1].stages["evaluate"].usd > 0
    optimizer.iterations = 2
    again = optimizer.compile(student(url), trainset=examples(), valset=examples(range(2))).detailed_results
    assert again.usage.usd == pytest.approx(3.6 + 2 * again.usage.calls / 100)


@pytest.mark.parametrize("count", [None, "many", -1])
def test_a_server_that_does_not_count_is_believed_to_charge_the_estimate(tmp_path, fake, url, count):
    honest = fake.job
    fake.job = lambda name: honest(name) | {"trained_tokens": count}
    assert compiled(tmp_path, url, 100).usage.usd == pytest.approx(estimate(tmp_path))


@pytest.mark.parametrize(
    ("trainer", "model"),
    [
        (HostedTrainer(), "openai/toy"),
        (HostedTrainer(prices={"openai/another": 1.0}), "openai/toy"),
        (SuitableTrainer(), "openai/toy"),
        (ProviderTrainer(), "openai/toy"),
    ],
)
def test_a_limit_in_dollars_needs_the_price_of_training_before_anything_is_paid_for(
    tmp_path, fake, url, monkeypatch, trainer, model
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(SettingsError, match=rf"price of fine-tuning \['{model}'\].*HostedTrainer\(prices="):
        compiled(tmp_path, url, 100, trainer)
    assert (fake.chats, fake.jobs) == ([], {})
    assert made(tmp_path, None, trainer).plan(student(url), trainset=examples(), valset=examples()).total["usd"] is None


def test_a_plan_tells_the_most_that_jobs_cost(tmp_path, fake, url):
    plan = made(tmp_path, 100).plan(student(url), trainset=examples(), valset=examples())
    (stage,) = [stage for stage in plan.stages if stage.stage == "train"]
    assert [(job.agent, job.rows.high, job.epochs) for job in stage.jobs] == [(agent, 32, 2) for agent in AGENTS]
    assert stage.usd.low == 0
    assert stage.usd.likely < stage.usd.high == sum(32 * job.row_tokens.high * 2 * PRICE / 1e6 for job in stage.jobs)
    assert stage.usd.high == plan.total["usd"].high
    shown = " ".join(str(plan).split())
    assert "A fine-tuning job of doubler: at most 32 rows of" in shown
    assert "tokens, 2 epochs, 1000 US dollars per million tokens: at most" in shown
    assert f"All 2 jobs: at most {stage.usd.high:,.2f} US dollars" in shown
    assert [job["agent"] for job in plan.to_dict()["stages"][2]["jobs"]] == list(AGENTS)
    json.dumps(plan.to_dict())
    compiled(tmp_path, url, 100)
    assert estimate(tmp_path) < stage.usd.high


def test_a_plan_says_that_a_price_is_unknown(tmp_path, url):
    plan = made(tmp_path, None, hosted(prices=None)).plan(student(url), trainset=examples(), valset=examples())
    assert plan.total["usd"] is None
    assert "the price of training 'openai/toy' is unknown" in " ".join(str(plan).split())


def test_the_caps_of_the_curator_are_planned(tmp_path, url):
    curator = Curator(max_per_example=3, max_rows=10, max_per_agent=7)
    assert [curator.most_rows(*sizes) for sizes in ((1, 2), (1, 9), (2, 1))] == [6, 7, 6]
    plan = made(tmp_path, curator=curator).plan(student(url), trainset=examples(), valset=examples())
    assert {job.rows.high for stage in plan.stages for job in stage.jobs} == {7}


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("openai/gpt-4.1-mini", 5.0),
        ("openai/gpt-4.1-nano", 1.5),
        ("openai/ft:gpt-4.1-nano-2025-04-14:org::id", 1.5),
        ("openai/mine", 0.0),
        ("openai/o4-mini", None),
    ],
)
def test_the_longest_name_in_the_table_decides(model, price):
    trainer = HostedTrainer(prices={"openai/gpt-4.1": 5.0, "openai/gpt-4.1-nano": 1.5, "openai/mine": 0})
    assert trainer.price(dspy.LM(model)) == price


def test_calls_of_a_fine_tuned_model_have_the_price_that_was_given_for_its_base():
    table = {"openai/": (1.0, 1.0), "openai/mine": (2.0, 3.0)}
    assert price_of("openai/ft:mine:org::id", table) == (2.0, 3.0)
    assert price_of("openai/other", table) == (1.0, 1.0)


def test_calls_of_a_fine_tuned_model_that_is_listed_have_their_own_price():
    model, table = "openai/ft:gpt-4o-mini-2024-07-18:org::id", {"openai/gpt-4o-mini": (0.15, 0.6)}
    assert price_of(model, table) == price_of(model) != (0.15, 0.6)
    assert price_of("openai/gpt-4o-mini", table) == (0.15, 0.6)
    assert price_of(model, {"openai/ft:gpt-4o-mini": (9.0, 9.0)}) == (9.0, 9.0)


def test_epochs_that_the_server_chooses_are_estimated_as_openai_does():
    lm = lm_at("http://127.0.0.1:9/v1")
    assert [HostedTrainer().num_epochs(lm, rows) for rows in (1, 10, 34, 5000, 20_000, 50_000)] == [25, 10, 3, 3, 1, 1]
    assert HostedTrainer({"n_epochs": 4}).num_epochs(lm, 10) == 4


@pytest.mark.parametrize(
    ("message", "extra", "tokens"),
    [
        ({"content": "x" * 400}, {}, 100),
        ({"content": [{"type": "text", "text": "x" * 400}, {"type": "image_url", "image_url": {}}]}, {}, 100),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "x" * 400}}]}, {}, 110),
        ({"content": ""}, {"tools": [{"function": {"name": "f", "description": "x" * 400}}]}, 111),
    ],
)
def test_tools_calls_and_parts_of_messages_are_part_of_the_estimate(tmp_path, url, message, extra, tokens):
    row = {"messages": [{"role": "user", **message}], **extra}
    request = TrainingRequest("doubler", lm_at(url), [row], tmp_path, 0, lambda step, total, loss: None)
    assert HostedTrainer({"n_epochs": 1}).trained_tokens(request) == pytest.approx(tokens, abs=10)


@pytest.mark.parametrize("prices", [{"openai/toy": -1}, {"openai/toy": None}, 1.5])
def test_prices_of_the_wrong_kind_are_refused(url, prices):
    for trainer in (HostedTrainer(prices=prices), SuitableTrainer(prices=prices)):
        with pytest.raises(SettingsError, match="`prices`"):
            trainer.check("doubler", lm_at(url))


def test_tools_and_their_calls_are_paid_for(tmp_path):
    call = {
        "id": "a",
        "type": "function",
        "function": {"name": "search", "arguments": json.dumps({"query": "x" * 400})},
    }
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    tool = {"type": "function", "function": {"name": "search", "description": "y" * 4000}}

    def tokens(row):
        request = TrainingRequest("agent", dspy.LM("openai/toy"), [row], tmp_path, 0, lambda *_: None)
        return HostedTrainer({"n_epochs": 1}).trained_tokens(request)

    assert 100 <= tokens({"messages": messages}) < 200
    assert 1100 <= tokens({"messages": messages, "tools": [tool]}) < 1200


class Charging(ScriptedTrainer):
    """A trainer of the user's own, which takes money."""

    def __init__(self, price, tokens):
        super().__init__(lambda request: request.lm.copy(model=f"toy-{request.agent}-{request.seed}"))
        self.usd, self.tokens = price, tokens

    def price(self, lm):
        return self.usd

    def trained_tokens(self, request):
        return self.tokens


@pytest.mark.parametrize(
    ("price", "tokens", "wrong"),
    [(float("nan"), 1, "price"), (-1.0, 1, "price"), ("1", 1, "price"), (1.0, None, "trained_tokens"), (1.0, -1, "")],
)
def test_prices_and_tokens_that_are_no_numbers_are_refused_before_any_job(tmp_path, price, tokens, wrong):
    trainer, program = Charging(price, tokens), toy_student()
    with pytest.raises(SettingsError, match=f"`{wrong}.*` of Charging is .*, expected a finite number"):
        compiled_by(tmp_path / "run", program, trainer=trainer)
    assert not trainer.requests
    assert wrong != "price" or program.doubler.lm.calls == 0


def test_tokens_of_an_estimate_need_not_be_whole(tmp_path):
    settings = {"iterations": 1, "gate": None, "augmenter": None, "budget": Budget(usd=1, prices={"": (0.0, 0.0)})}
    result = compiled_by(tmp_path / "run", trainer=Charging(1000.0, 12.4), **settings).detailed_results
    assert (result.ended, result.usage.usd) == ("finished", pytest.approx(0.024))
