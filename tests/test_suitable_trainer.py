"""Without a `trainer`, each agent is trained in the way that its LM needs."""

from __future__ import annotations

import dspy
import pytest

from sirius_dspy import HostedTrainer, ProviderTrainer, SuitableTrainer
from sirius_dspy.errors import SettingsError, UnpreparedProgramError
from sirius_dspy.testing import ScriptedLM, ToyLM, TrainerContract, chat_reply
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.training.trainers import TrainingRequest
from sirius_dspy.vllm import VLLMLM, VLLMServer, VLLMTrainer
from sirius_dspy.vllm.lm import VLLMProvider
from tests import toy
from tests.fake_vllm import FakeVLLM
from tests.serve_help import serving
from tests.test_serve_training import MemoryBackend
from tests.test_vllm_compile import learn, reply

pytestmark = pytest.mark.usefixtures("chat_adapter")


@pytest.fixture(autouse=True)
def adapter(chat_adapter):
    dspy.configure(adapter=toy.ADAPTER)


class Judged(toy.Doubling):
    """The toy program, with a judge whose LM nobody can train."""

    def __init__(self):
        super().__init__()
        self.judge = dspy.Predict("answer -> verdict")
        self.judge.lm = ScriptedLM(lambda prompt: chat_reply(verdict="fine"))

    def forward(self, number):
        answered = super().forward(number)
        self.judge(answer=answered.answer)
        return answered


class Learning(VLLMProvider):
    def trainer(self):
        return VLLMTrainer(training=learn)


class Order(Tracker):
    def __init__(self):
        self.agents = []

    def on_trained(self, event):
        self.agents.append(event.agent)


def hosted_at(client):
    return dspy.LM("openai/tiny", api_base=str(client.base_url), api_key="none", cache=False, num_retries=0)


def judged(doubler, writer):
    program = Judged()
    program.doubler.lm, program.writer.predict.lm = doubler, writer
    return program


class TestContract(TrainerContract):
    @pytest.fixture
    def trainer(self):
        return SuitableTrainer()

    @pytest.fixture
    def lm(self):
        return ToyLM(skill=lambda prompt: "?")

    @pytest.fixture
    def refused(self):
        return "judge", ScriptedLM()


def test_a_local_a_hosted_and_a_frozen_agent_in_one_program(tmp_path):
    backend = MemoryBackend()
    with serving(tmp_path / "data", backend) as client:
        settings = {"iterations": 1, "frozen": ["judge"]}
        for _ in range(2):  # the second call finds everything done
            program = judged(ToyLM(skill=toy.skill), hosted_at(client))
            compiled = toy.compiled_by(tmp_path / "run", program, **settings)
            assert compiled.doubler.lm.model != "toy/base"
            assert isinstance(compiled.doubler.lm, ToyLM)
            assert compiled.writer.predict.lm.model.startswith("openai/ft:tiny:writer")
            assert isinstance(compiled.judge.lm, ScriptedLM)
            assert compiled(number=7).answer == "ans:14"  # a repaired run taught it
            assert len(backend.trained) == 1


def test_an_agent_on_this_machine_does_not_wait_for_a_hosted_one(tmp_path):
    order = Order()
    with serving(tmp_path / "data", MemoryBackend()) as client:
        program = judged(hosted_at(client), ToyLM(skill=toy.skill))
        toy.compiled_by(tmp_path / "run", program, iterations=1, frozen=["judge"], tracker=order)
    assert order.agents == ["writer.predict", "doubler"]


def test_an_agent_with_vllm_and_a_local_one_in_one_program(tmp_path):
    with FakeVLLM(reply=reply).serving() as url:
        server = VLLMServer("base", api_base=url)
        program = toy.Doubling()
        program.doubler.lm = VLLMLM(server, num_retries=0, provider=Learning())
        program.writer.predict.lm = ToyLM(skill=toy.skill)
        compiled = toy.compiled_by(tmp_path, program, iterations=1)
        assert compiled.doubler.lm.adapter is not None
        assert isinstance(compiled.writer.predict.lm, ToyLM)
        assert compiled(number=7).answer == "ans:14"


@pytest.mark.parametrize("trainer", [SuitableTrainer(), HostedTrainer()])
def test_agents_with_one_base_are_neighbors_and_hosted_ones_last(trainer, tmp_path):
    one, other, hosted = ToyLM(), ToyLM(), dspy.LM("openai/x", api_key="none")
    for lm in (one, other):
        lm.provider.finetune_all = lambda model, rows, settings: []
    given = {"a": hosted, "b": one, "c": other, "d": hosted, "e": one}
    requests = [TrainingRequest(name, lm, (), tmp_path, 0, lambda *_: None) for name, lm in given.items()]
    assert [request.agent for request in trainer.order(requests)] == ["b", "e", "c", "a", "d"]


def test_each_lm_has_its_trainer():
    choose = SuitableTrainer(train_from="current").trainer_for
    assert isinstance(choose(VLLMLM(VLLMServer("base", api_base="http://127.0.0.1:9"))), VLLMTrainer)
    for lm, kind in ((dspy.LM("openai/x"), HostedTrainer), (ToyLM(), ProviderTrainer)):
        assert type(choose(lm)) is kind
        assert choose(lm).train_from == "current"


def test_weights_that_a_trainer_cannot_start_from_are_refused():
    lm = VLLMLM(VLLMServer("base", api_base="http://127.0.0.1:9"))
    with pytest.raises(UnpreparedProgramError, match=r"'solver' .* from the 'current' weights.*VLLMTrainer"):
        SuitableTrainer(train_from="current").check("solver", lm)
    with pytest.raises(SettingsError, match="train_from"):
        SuitableTrainer(train_from="best").check("solver", ToyLM())


def test_a_plan_does_not_call_hosted_jobs_free(tmp_path):
    with serving(tmp_path / "data", MemoryBackend()) as client:
        for writer, free in ((hosted_at(client), False), (ToyLM(skill=toy.skill), True)):
            program = judged(ToyLM(skill=toy.skill), writer)
            plan = toy.optimizer(tmp_path / "run", frozen=["judge"]).plan(
                program, trainset=toy.examples(), valset=toy.examples()
            )
            costs = {stage.usd is not None for stage in plan.stages if stage.stage == "train"}
            assert costs == {free}
