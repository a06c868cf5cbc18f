"""No run, example, predictor or answer crowds out the others, and weights follow the pass rate."""

from __future__ import annotations

from collections import Counter

import dspy
import pytest

from sirius_dspy import BalancedCurator, Curator, PassRateWeights
from sirius_dspy.errors import SettingsError
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, chat_reply

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)


@pytest.fixture(autouse=True)
def chat():
    dspy.configure(adapter=CHAT)


class Relay(dspy.Module):
    """A worker reads a part at a time, and a reporter answers once."""

    def __init__(self):
        super().__init__()
        self.worker = dspy.Predict("part -> state")
        self.reporter = dspy.Predict("states -> answer")

    def forward(self, parts):
        states = [self.worker(part=part).state for part in parts.split()]
        return self.reporter(states=" ".join(states))


def relay(answers=lambda states: "yes"):
    def play(prompt):
        if prompt.asks_for("state"):
            return chat_reply(state=f"read {prompt.field('part')}")
        return chat_reply(answer=answers(prompt.field("states")))

    program = Relay()
    program.set_lm(ScriptedLM(play))
    return program


def runs_of(program, *parts, succeeds=lambda example: True, samples=1):
    tasks = [Task(dspy.Example(parts=text).with_inputs("parts"), sample) for text in parts for sample in range(samples)]
    rollouts = Rollouts(lambda example, prediction, trace=None: succeeds(example), num_threads=1)
    return [run for _, run in rollouts.run_all(program, tasks)]


def curated(curator, program, runs, agents=None, **settings):
    agents = agents or {"worker": ["worker"], "reporter": ["reporter"]}
    return curator.curate(program, runs, agents, threshold=1.0, **settings)


LONG = " ".join(f"long{number}" for number in range(10))


def test_a_run_gives_no_more_rows_of_a_predictor_than_its_cap():
    program = relay()
    sets = curated(Curator(max_per_example=100, max_per_run=3), program, runs_of(program, LONG, "a b"))
    assert len(sets["worker"].rows) == 3 + 2
    assert len(sets["reporter"].rows) == 2
    assert sets["worker"].dropped == {"over the cap per run": 7}


def test_rows_under_a_cap_are_drawn_evenly_over_examples():
    program = relay()
    runs = runs_of(program, LONG, "a b", "c d", "e f")
    for seed in range(5):
        sets = curated(Curator(max_per_example=100, max_rows=8), program, runs, seed=seed)
        assert sorted(Counter(row.example_key for row in sets["worker"].rows).values()) == [2, 2, 2, 2]


def test_predictors_that_share_weights_share_the_cap_of_their_agent_evenly():
    program = relay()
    runs = runs_of(program, LONG, LONG.replace("long", "other"))
    sets = curated(Curator(max_per_example=100, max_per_agent=4), program, runs, {"team": ["worker", "reporter"]})
    assert Counter(row.predictor for row in sets["team"].rows) == {"worker": 2, "reporter": 2}
    assert sets["team"].dropped == {"over the cap per agent": 18}


def test_rows_of_examples_that_are_sometimes_solved_weigh_most():
    program = relay()
    runs = runs_of(program, "a", "b", samples=2)
    some = runs_of(program, "c", succeeds=lambda example: False) + runs_of(program, "c")
    rows = curated(Curator(weights=PassRateWeights(floor=0.5)), program, [*runs, *some])["reporter"].rows
    weights = {row.messages[-2]["content"].count("read c"): row.weight for row in rows}
    assert weights == {0: pytest.approx(0.75), 1: pytest.approx(1.5)}
    assert sum(row.weight for row in rows) == pytest.approx(len(rows))


def answered(**numbers):
    """Runs of so many examples with each answer."""
    program = relay(lambda states: str(states).split()[1].rstrip("0123456789"))
    return program, runs_of(program, *[f"{word}{n}" for word, number in numbers.items() for n in range(number)])


@pytest.mark.parametrize(
    ("numbers", "kept"),
    [
        ({"yes": 9, "no": 3}, [3, 3]),
        ({"yes": 9, "no": 5, "maybe": 2}, [2, 5, 5]),
        ({"yes": 4, "no": 4}, [4, 4]),
        ({"yes": 5}, []),
    ],
)
def test_a_frequent_label_is_capped_at_the_number_of_the_others(numbers, kept):
    program, runs = answered(**numbers)
    sets = curated(BalancedCurator(), program, runs)
    assert sorted(Counter(row.messages[-1]["content"] for row in sets["reporter"].rows).values()) == kept
    assert sets["reporter"].dropped.get("out of balance", 0) == sum(numbers.values()) - sum(kept)
    assert len(sets["worker"].rows) == sum(numbers.values())


def test_wrong_settings_of_weights_and_labels_are_refused():
    for floor in (0, 1, "half"):
        with pytest.raises(SettingsError, match="`floor` of PassRateWeights"):
            Curator(weights=PassRateWeights(floor)).check()
    with pytest.raises(SettingsError, match="`label` of BalancedCurator"):
        BalancedCurator(label="").check()
