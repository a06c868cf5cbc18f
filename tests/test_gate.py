"""Which new weights are kept: by the gate that comes with the package, and by one of the user's own."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from sirius_dspy import Collect, Curator, Gain, Gate, ValsetGate
from sirius_dspy.errors import NoSuccessError, SettingsError
from sirius_dspy.report import Report, render_markdown
from sirius_dspy.testing import ScriptedTrainer, ToyLM, chat_reply
from sirius_dspy.tracking.events import Tracker
from tests import toy
from tests.toy import ADAPTER, examples, optimizer, student

AGENTS = ("doubler", "writer.predict")


@pytest.fixture(autouse=True)
def chat() -> None:
    dspy.configure(adapter=ADAPTER)


class Chooses(Gate):
    """Keeps what it was told to, and remembers what it was asked."""

    def __init__(self, agents: Any = ()) -> None:
        self.agents = agents
        self.asked: list[tuple[str, ...]] = []

    def choose(self, trial):
        self.asked.append(trial.agents)
        return self.agents


class Best(Gate):
    """Scores every set of agents twice, and keeps the best one."""

    def choose(self, trial):
        sets = [(), trial.agents[:1], trial.agents[1:], trial.agents] * 2
        return max(sets, key=lambda agents: trial.gain(trial.evaluate(agents), trial.before))


class Scores(Tracker):
    def __init__(self) -> None:
        self.labels: list[str] = []

    def on_evaluated(self, event):
        if event.iteration:
            self.labels.append(event.label)


def trainer() -> ScriptedTrainer:
    """Makes a doubler that is always right, and a writer that is always wrong."""
    good = ToyLM("toy/good", skill=lambda prompt: chat_reply(doubled=int(prompt.field("number")) * 2))
    bad = ToyLM("toy/bad", skill=lambda prompt: chat_reply(reasoning="r", answer="ans:wrong"))
    return ScriptedTrainer(dict(zip(AGENTS, (good, bad), strict=True)))


def compiled_by(run_dir, gate, **settings):
    settings = {"iterations": 1, "augmenter": None, "collect": Collect(samples=1), "trainer": trainer(), **settings}
    return optimizer(run_dir, gate=gate, **settings).compile(student(), trainset=examples(), valset=examples())


def lms_of(compiled):
    return compiled.doubler.lm.model, compiled.writer.predict.lm.model


@pytest.mark.parametrize(
    ("kept", "score"),
    [((), 0.5), (("doubler",), 1.0), (("writer.predict",), 0.0), (("writer.predict", "doubler"), 0.0)],
)
def test_a_gate_of_the_user_s_own_keeps_what_it_chooses(kept, score, tmp_path):
    gate = Chooses(kept)
    entry = compiled_by(tmp_path, gate).detailed_results.iterations[1]
    assert gate.asked == [AGENTS]
    assert entry.promoted == {agent: agent in kept for agent in AGENTS}
    new = dict(zip(AGENTS, ("toy/good", "toy/bad"), strict=True))
    assert entry.lms == {agent: new[agent] if agent in kept else "toy/base" for agent in AGENTS}
    assert entry.score == score


def test_the_compiled_program_has_the_one_agent_that_a_gate_of_the_user_s_own_keeps(tmp_path):
    compiled = compiled_by(tmp_path, Chooses(["doubler"]))
    assert lms_of(compiled) == ("toy/good", "toy/base")
    assert [compiled(number=number).answer for number in range(4)] == [f"ans:{2 * number}" for number in range(4)]


def test_a_set_of_weights_is_scored_once_however_often_a_gate_asks(tmp_path):
    scores = Scores()
    assert lms_of(compiled_by(tmp_path, Best(), tracker=scores)) == ("toy/good", "toy/base")
    assert scores.labels == ["doubler", "writer.predict", "program"]


class Tries(Chooses):
    """Scores what it was told to, and keeps nothing."""

    def choose(self, trial):
        trial.evaluate(self.agents)
        return ()


@pytest.mark.parametrize("kind", [Chooses, Tries])
@pytest.mark.parametrize("chosen", [["nobody"], ["doubler", "nobody"]])
def test_a_gate_that_names_agents_without_new_weights_is_refused(kind, chosen, tmp_path):
    with pytest.raises(SettingsError, match=r"names \['nobody'\].*`trial\.agents`.*'doubler', 'writer\.predict'"):
        compiled_by(tmp_path, kind(chosen))


@pytest.mark.parametrize("chosen", [None, "doubler", 1, [1], {"doubler": True}])
def test_a_gate_that_gives_no_names_is_refused(chosen, tmp_path):
    with pytest.raises(SettingsError, match=r"`choose` of Chooses is .*, expected a list of names"):
        compiled_by(tmp_path, Chooses(chosen))


def test_a_gate_cannot_keep_a_frozen_agent(tmp_path):
    with pytest.raises(SettingsError, match=r"names \['writer\.predict'\].*here \['doubler'\]"):
        compiled_by(tmp_path, Chooses(["writer.predict"]), frozen=["writer.predict"])


def test_a_gate_that_was_corrected_goes_on_without_training_again(tmp_path):
    first, second = trainer(), trainer()
    with pytest.raises(SettingsError):
        compiled_by(tmp_path, Chooses(["nobody"]), trainer=first)
    compiled = compiled_by(tmp_path, Chooses(["doubler"]), trainer=second, accept_changes=["gate"])
    assert (len(first.requests), len(second.requests)) == (2, 0)
    assert compiled.detailed_results.iterations[1].promoted == {"doubler": True, "writer.predict": False}


def test_the_gate_checks_its_own_settings_before_anything_is_paid_for(tmp_path):
    class Strict(Chooses):
        def check(self):
            raise SettingsError("`agents` of Strict is empty, expected one.")

    program = student()
    with pytest.raises(SettingsError, match="of Strict"):
        optimizer(tmp_path / "run", gate=Strict()).compile(program, trainset=examples(), valset=examples())
    assert program.doubler.lm.calls == 0
    assert not (tmp_path / "run").exists()


def test_the_valset_gate_wants_as_much_as_it_was_told(tmp_path):
    for min_gain, kept in ((0.0, True), (0.5, True), (0.51, False)):
        compiled = compiled_by(tmp_path / str(min_gain), ValsetGate(min_gain=min_gain))
        assert compiled.detailed_results.iterations[1].promoted == {"doubler": kept, "writer.predict": False}


def test_weights_that_make_no_difference_are_kept_unless_a_gain_is_wanted(tmp_path):
    def same():
        base = student().doubler.lm
        return ScriptedTrainer(lambda request: base.copy(model=f"toy/{request.agent}"))

    for min_gain, kept in ((0.0, True), (0.01, False)):
        compiled = compiled_by(tmp_path / str(min_gain), ValsetGate(min_gain=min_gain), trainer=same())
        assert set(compiled.detailed_results.iterations[1].promoted.values()) == {kept}


@pytest.mark.parametrize("gate", [None, ValsetGate(), Best()])
def test_what_a_plan_says_of_evaluations_holds(gate, tmp_path):
    scores, settings = Scores(), {"iterations": 1, "augmenter": None, "collect": Collect(samples=1)}
    made = optimizer(tmp_path, gate=gate, trainer=trainer(), tracker=scores, **settings)
    plan = made.plan(student(), trainset=examples(), valset=examples())
    planned = next(stage for stage in plan.stages if (stage.iteration, stage.stage) == (1, "evaluate"))
    made.compile(student(), trainset=examples(), valset=examples())
    assert planned.units.low <= len(scores.labels) * len(examples()) <= planned.units.high


def test_the_results_say_what_the_gate_saw(tmp_path):
    class Pair(Gate):
        """Tries the agents from the last to the first, each alone."""

        def choose(self, trial):
            for agent in reversed(trial.agents):
                trial.evaluate([agent])
            return [trial.agents[0]]

    result = toy.compiled_by(tmp_path, gate=Pair(), iterations=1).detailed_results
    entry = result.iterations[1]
    assert [trial.agents for trial in entry.trials] == [("writer.predict",), ("doubler",)]
    assert entry.promoted == {"doubler": True, "writer.predict": False}
    assert entry.standing == entry.trials[1].standing
    page = render_markdown(Report(result))
    table = page[page.index("Promotion") :]
    assert table.index("writer.predict") < table.index("doubler")
    assert "all new weights" not in table


class Junk(Curator):
    def curate(self, program, trajectories, agents, **settings):
        return {agent: [] for agent in agents}


class Silent(Curator):
    def curate(self, program, trajectories, agents, **settings):
        return {}


class Nobody(Curator):
    def refuse(self, row):
        return "not good enough"


@pytest.mark.parametrize(
    ("curator", "error", "said"),
    [
        (Junk(), SettingsError, "Junk returned a mapping.*expected a `TrainingSet`.*doubler"),
        (Silent(), NoSuccessError, r"\d+ runs reached the threshold.*Silent returned no training rows"),
        (Nobody(), NoSuccessError, r"dropped were \d+ x not good enough\. The runs are"),
    ],
)
def test_a_curator_that_returns_nothing_useful_is_named(curator, error, said, tmp_path):
    with pytest.raises(error, match=said):
        toy.compiled_by(tmp_path, curator=curator, iterations=1)


def test_a_gain_compares_by_reward_first():
    assert Gain(0.1, -5) > Gain(0.0, 5)
    assert Gain(0.0, 1) > Gain(0.0, 0)
