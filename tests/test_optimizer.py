"""The whole loop on a toy LM that learns."""

from __future__ import annotations

import json
import math
from pathlib import Path

import dspy
import pytest

from sirius_dspy import Collect, CriticAugmenter, Curator, ExperienceLibrary, ProviderTrainer, SharedWeights, SiriuS
from sirius_dspy.errors import (
    DatasetError,
    MetricError,
    NoSuccessError,
    RunMismatchError,
    TrainingError,
    UnpreparedProgramError,
)
from sirius_dspy.testing import ScriptedLM, ScriptedTrainer, ToyLM, chat_reply
from sirius_dspy.tracking.events import Tracker
from tests.toy import ADAPTER, Doubling, compiled_by, exact, examples, optimizer, skill, student, without_time

pytestmark = pytest.mark.usefixtures("chat_adapter")


class Log(Tracker):
    """Remembers every event."""

    def __init__(self) -> None:
        self.events: list = []

    def __getattribute__(self, name):
        return super().__getattribute__(name) if not name.startswith("on_") else self.events.append

    def of(self, kind: str) -> list:
        return [event for event in self.events if type(event).__name__ == kind]


# The loop


def test_the_program_learns_from_its_own_successes_and_from_repairs(tmp_path):
    program = student()
    compiled = compiled_by(tmp_path, program)
    scores = [entry["score"] for entry in compiled.detailed_results["iterations"]]
    assert scores == [0.5, 1.0, 1.0]
    first = compiled.detailed_results["iterations"][1]
    assert first["metrics"]["collect/success_rate"] == 0.5
    assert (first["repair"]["tried"], first["repair"]["repaired"]) == (4, 4)
    assert {agent: entry["rows"] for agent, entry in first["agents"].items()} == {"doubler": 8, "writer.predict": 8}
    assert compiled.detailed_results["best_iteration"] == 1  # of equals, the least trained
    assert compiled(number=7).answer == "ans:14"


def test_the_student_stays_as_it_was(tmp_path):
    program = student()
    lm, state = program.doubler.lm, program.dump_state()
    compiled = compiled_by(tmp_path, program)
    assert program.doubler.lm is lm
    assert program.dump_state() == state
    assert not program._compiled
    assert compiled._compiled
    assert dspy.settings.adapter is ADAPTER
    assert not lm.history


class Remembering(dspy.Module):
    """Asks each question once, and shows what it was asked before."""

    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.answers, self.log = {}, []

    def forward(self, question):
        self.log.append(question)
        if question not in self.answers:
            self.answers[question] = self.ask(question=question)
        return self.answers[question]


def test_new_weights_are_asked_even_if_the_program_keeps_its_answers(tmp_path):
    program = Remembering()
    program.set_lm(ToyLM(skill=lambda prompt: chat_reply(answer="new" if "+" in prompt.model else "old")))
    trainset = [dspy.Example(question="a").with_inputs("question")]
    optimizer = SiriuS(
        lambda example, found, trace=None: 1.0 if found.answer == "new" else 0.5,
        threshold=0.5,
        iterations=1,
        augmenter=None,
        run_dir=tmp_path,
    )
    valset = [dspy.Example(question="b").with_inputs("question")]
    compiled = optimizer.compile(program, trainset=trainset, valset=valset)
    assert [entry.score for entry in compiled.detailed_results.iterations] == [0.5, 1.0]
    assert (program.log, compiled.log, compiled.answers) == ([], [], {})


def test_rows_have_the_prompts_that_were_sent_though_a_program_changes_its_signatures(tmp_path):
    class Rewriting(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question):
            self.ask.signature = self.ask.signature.with_instructions(f"Answer {question}.")
            return self.ask(question=question)

    program, lm = Rewriting(), ToyLM(skill=lambda prompt: chat_reply(answer="ok"))
    program.set_lm(lm)
    trainset = [dspy.Example(question=name, answer="ok").with_inputs("question") for name in ("a", "b", "c")]
    optimizer(tmp_path, iterations=1, num_threads=1).compile(program, trainset=trainset, valset=trainset)
    rows = [json.loads(line) for line in (tmp_path / "training/iteration-1/ask.jsonl").read_text().splitlines()]
    sent = {(prompt.system, prompt.user) for prompt in lm.requests}
    asked = {tuple(message["content"] for message in row["messages"][:-1]) for row in rows}
    assert len(asked) == 3
    assert asked <= sent


def test_each_agent_has_its_own_weights_that_know_its_own_rows_only(tmp_path):
    compiled = compiled_by(tmp_path, iterations=1)
    doubler, writer = (predictor.lm for _, predictor in compiled.named_predictors())
    assert doubler.model != writer.model
    assert all("doubled" in completion and "answer" not in completion for completion in doubler.memory.values())
    assert all("ans:" in completion for completion in writer.memory.values())
    learnt = {completion.split("\n")[1] for completion in doubler.memory.values()}
    assert learnt == {str(2 * number) for number in range(8)}  # no "(corrected)" got in


def test_training_starts_from_the_base_or_from_the_current_weights(tmp_path):
    for start in ("base", "current"):
        log = Log()
        compiled_by(tmp_path / start, trainer=ProviderTrainer(train_from=start), tracker=log)
        bases = [event.base for event in log.of("Trained")]
        assert bases[:2] == ["toy/base"] * 2
        assert (bases[2:] == ["toy/base"] * 2) is (start == "base")


def test_without_repair_only_successes_teach(tmp_path):
    compiled = compiled_by(tmp_path, augmenter=None, iterations=1)
    entry = compiled.detailed_results["iterations"][1]
    assert entry["repair"]["tried"] == 0
    assert entry["agents"]["doubler"]["rows"] == 4


@pytest.mark.parametrize(("cumulative", "num_rows"), [(False, 2), (True, 4)])
def test_rows_are_of_this_iteration_or_of_all_so_far(tmp_path, cumulative, num_rows):
    def forgetful(prompt):
        number = int(prompt.field("number"))
        return chat_reply(doubled=number * 2 if number in (4, 6) else "forgotten")

    trainer = ScriptedTrainer({"doubler": ToyLM("toy/forgetful", skill=forgetful)})
    compiled_by(
        tmp_path,
        augmenter=None,
        iterations=2,
        gate=None,
        frozen=["writer.predict"],
        trainer=trainer,
        curator=Curator(cumulative=cumulative),
    )
    assert [len(request.rows) for request in trainer.requests] == [4, num_rows]


def test_no_more_runs_are_repaired_than_allowed(tmp_path):
    compiled = compiled_by(tmp_path, augmenter=CriticAugmenter(max_repairs=3), iterations=1)
    assert compiled.detailed_results.iterations[1].repair.tried == 3


def test_a_frozen_agent_keeps_its_lm_and_is_not_edited(tmp_path):
    program = student()
    compiled = compiled_by(tmp_path, program, frozen=["doubler"])
    assert compiled.doubler.lm is program.doubler.lm
    library = ExperienceLibrary(tmp_path / "library.sqlite")
    assert {attempt.predictor for repair in library.repairs() for attempt in repair.attempts} == {"writer.predict"}


def test_groups_and_shared_weights_are_one_set_of_weights(tmp_path):
    for number, agents in enumerate(({"team": ["doubler", "writer.predict"]}, SharedWeights())):
        compiled = compiled_by(tmp_path / str(number), iterations=1, agents=agents)
        assert compiled.doubler.lm is compiled.writer.predict.lm
        assert sum(entry["rows"] for entry in compiled.detailed_results["iterations"][1]["agents"].values()) == 16


def test_demonstrations_for_collecting_are_shown_until_an_agent_has_learnt_and_never_trained_on(tmp_path):
    def needs_demos(prompt):
        # Without a demonstration in the prompt, the doubler knows nothing.
        shown = len(prompt.messages) > 1
        return skill(prompt) if shown or not prompt.asks_for("doubled") else chat_reply(doubled="?")

    program = Doubling()
    program.set_lm(ToyLM(skill=needs_demos))
    demos = {"doubler": [dspy.Example(number=100, doubled="200").with_inputs("number")]}
    with pytest.raises(NoSuccessError):
        compiled_by(tmp_path / "cold", program, augmenter=None)
    compiled = compiled_by(tmp_path / "demos", program, augmenter=None, collect=Collect(samples=2, demos=demos))
    assert [entry["score"] for entry in compiled.detailed_results["iterations"][:2]] == [0.0, 0.5]
    assert compiled.doubler.demos == []
    rows = (tmp_path / "demos" / "training" / "iteration-1" / "doubler.jsonl").read_text()
    assert "100" not in rows
    library = ExperienceLibrary(tmp_path / "demos" / "library.sqlite")
    shown = {
        (found.iteration, step.num_demos)
        for found in library.trajectories(origin="rollout")
        for step in found.steps
        if step.predictor == "doubler"
    }
    assert shown == {(1, 1), (2, 0)}


def test_demonstrations_of_the_student_are_gone_from_agents_that_were_trained_without(tmp_path):
    program = student()
    program.doubler.demos = [dspy.Example(number=1, doubled="2").with_inputs("number")]
    compiled = compiled_by(tmp_path, program, iterations=1)
    assert compiled.doubler.demos == []
    assert len(program.doubler.demos) == 1


def test_a_teacher_makes_the_runs_of_the_first_iteration(tmp_path):
    teacher = Doubling()
    teacher.set_lm(
        ScriptedLM(
            lambda prompt: (
                chat_reply(doubled=int(prompt.field("number")) * 2) if prompt.asks_for("doubled") else skill(prompt)
            ),
            model="teacher",
        )
    )
    hopeless = Doubling()
    hopeless.set_lm(ToyLM(skill=lambda prompt: chat_reply(doubled="?", reasoning="?", answer="?")))
    compiled = optimizer(tmp_path, augmenter=None, iterations=1).compile(
        hopeless, trainset=examples(), valset=examples(), teacher=[teacher]
    )
    assert [entry["score"] for entry in compiled.detailed_results["iterations"]] == [0.0, 1.0]


def test_weights_that_make_the_program_worse_are_not_promoted(tmp_path):
    bad = ToyLM("toy/bad", skill=lambda prompt: chat_reply(reasoning="r", answer="ans:wrong", doubled="wrong"))
    good = ToyLM("toy/good", skill=lambda prompt: chat_reply(doubled=int(prompt.field("number")) * 2))
    trainer = ScriptedTrainer({"doubler": good, "writer.predict": bad})
    compiled = compiled_by(tmp_path / "gate", iterations=1, trainer=trainer)
    entry = compiled.detailed_results["iterations"][1]
    assert entry["promoted"] == {"doubler": True, "writer.predict": False}
    assert entry["score"] == 1.0
    assert compiled.doubler.lm.model == "toy/good"
    assert compiled.writer.predict.lm.model == "toy/base"
    ungated = compiled_by(tmp_path / "no-gate", iterations=1, trainer=trainer, gate=None)
    assert ungated.detailed_results["iterations"][1]["score"] == 0.0
    assert ungated.detailed_results["best_iteration"] == 0


def test_rewards_of_single_agents_decide_whose_steps_are_good(tmp_path):
    def game(example, prediction, trace=None):
        even = example.number % 2 == 0
        return dspy.Prediction(score=1.0, rewards={"doubler": float(even), "writer.predict": float(not even)})

    numbers = [0, 2, 4, 3]
    optimizer = SiriuS(game, iterations=1, collect=Collect(samples=1), augmenter=None, run_dir=tmp_path)
    compiled = optimizer.compile(student(), trainset=examples(numbers), valset=examples(numbers))
    agents = compiled.detailed_results["iterations"][1]["agents"]
    assert {agent: entry["rows"] for agent, entry in agents.items()} == {"doubler": 3, "writer.predict": 1}


def test_sampling_stops_at_the_first_success_if_asked_to(tmp_path):
    log = Log()
    compiled_by(tmp_path, collect=Collect(samples=3, until_solved=True), iterations=1, tracker=log, augmenter=None)
    runs = [event.trajectory for event in log.of("RolledOut") if event.trajectory.origin == "rollout"]
    assert len(runs) == 4 * 1 + 4 * 3


def test_the_threshold_is_reached_by_a_reward_equal_to_it(tmp_path):
    compiled = optimizer(tmp_path, threshold=0.25, iterations=1, collect=Collect(samples=1), augmenter=None).__class__(
        lambda example, prediction, trace=None: 0.25,
        threshold=0.25,
        iterations=1,
        collect=Collect(samples=1),
        augmenter=None,
        run_dir=tmp_path / "equal",
    )
    done = compiled.compile(student(), trainset=examples([0, 2]), valset=examples([0]))
    assert done.detailed_results["iterations"][1]["metrics"]["collect/success_rate"] == 1.0


def test_one_thread_and_eight_give_the_same_training_sets(tmp_path):
    for threads in (1, 8):
        compiled_by(tmp_path / str(threads), num_threads=threads, iterations=1)
    for name in ("doubler", "writer.predict"):
        path = f"training/iteration-1/{name}.jsonl"
        assert (tmp_path / "1" / path).read_text() == (tmp_path / "8" / path).read_text()


def test_without_a_valset_the_trainset_is_used_and_that_is_said(tmp_path):
    with pytest.warns(UserWarning, match="No valset"):
        optimizer(tmp_path, iterations=1).compile(student(), trainset=examples())


def test_by_default_the_work_is_kept_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compiled = optimizer(None, iterations=1).compile(student(), trainset=examples(), valset=examples())
    folder = Path(compiled.detailed_results["run_dir"])
    assert folder.parent == tmp_path / "sirius_runs"  # absolute, so that `chdir` does not move it
    assert (folder / "library.sqlite").exists()


def test_a_tracker_hears_of_everything_and_one_that_fails_does_no_harm(tmp_path):
    class Broken(Tracker):
        def on_rolled_out(self, event):
            raise RuntimeError("tracker is down")

    log = Log()
    compiled_by(tmp_path / "log", tracker=log, iterations=1)
    kinds = [type(event).__name__ for event in log.events]
    assert kinds[0] == "CompileStarted"
    assert kinds[-1] == "CompileEnded"
    assert {"StageStarted", "RolledOut", "Repaired", "Curated", "Trained", "Evaluated", "IterationEnded"} <= set(kinds)
    assert log.of("CompileEnded")[0].status == "finished"
    assert compiled_by(tmp_path / "broken", tracker=Broken(), iterations=1).detailed_results["best_score"] == 1.0


def test_parameters_are_the_simple_settings_those_of_parts_included(tmp_path):
    made = SiriuS(
        exact,
        iterations=3,
        collect=Collect(samples=2, temperature=0.5),
        curator=Curator(cumulative=True),
        trainer=ProviderTrainer(train_from="current"),
        seed=7,
    )
    expected = {
        "threshold": 1.0,
        "iterations": 3,
        "samples": 2,
        "temperature": 0.5,
        "until_solved": False,
        "warm_start": False,
        "keep_demos": True,
        "cumulative": True,
        "train_from": "current",
        "seed": 7,
    }
    made.get_params()["student"] = "as autolog writes into it"
    assert made.get_params() == expected
    log = Log()
    compiled_by(tmp_path, tracker=log, iterations=1, collect=Collect(samples=1), augmenter=None)
    (started,) = log.of("CompileStarted")
    assert {name: started.params[name] for name in ("samples", "train_from")} == {"samples": 1, "train_from": "base"}


def test_it_is_a_step_of_better_together(tmp_path):
    step = SiriuS(exact, iterations=1, collect=Collect(samples=1), run_dir=None)
    together = dspy.BetterTogether(metric=exact, s=step)
    step.run_dir = tmp_path / "one"
    best = together.compile(student(), trainset=examples(), valset=examples(), strategy="s")
    scores = {found["strategy"]: found["score"] for found in best.candidate_programs}
    assert scores == {"": 50.0, "s": 100.0}
    assert not best.flag_compilation_error_occurred


# Going on


def test_the_same_call_goes_on_from_where_it_was_and_pays_nothing_twice(tmp_path):
    program = student()
    first = compiled_by(tmp_path, program)
    calls = program.doubler.lm.calls
    log = Log()
    again = compiled_by(tmp_path, program, tracker=log)
    assert program.doubler.lm.calls == calls
    assert without_time(again.detailed_results) == without_time(first.detailed_results)
    assert log.of("CompileStarted")[0].resumed
    longer = compiled_by(tmp_path, program, iterations=3)
    assert len(longer.detailed_results["iterations"]) == 4


def test_a_failed_job_keeps_what_was_collected(tmp_path):
    program = student(fail_training=True)
    with pytest.raises(TrainingError, match=r"'doubler'.*again to resume") as caught:
        compiled_by(tmp_path, program)
    assert caught.value.agent == "doubler"
    calls = program.doubler.lm.calls
    healthy = student()
    assert compiled_by(tmp_path, healthy).detailed_results["best_score"] == 1.0
    # Only what came after the failed job was paid for again: two validations and the second iteration.
    assert healthy.doubler.lm.calls < calls + 60


def test_a_run_directory_of_another_compile_is_refused(tmp_path):
    compiled_by(tmp_path, iterations=1)
    with pytest.raises(RunMismatchError, match="seed"):
        compiled_by(tmp_path, seed=1)
    with pytest.raises(RunMismatchError, match="trainset"):
        optimizer(tmp_path).compile(student(), trainset=examples(range(9)), valset=examples())


def test_two_compiles_do_not_share_a_run_directory_at_once(tmp_path):
    class Second(Tracker):
        error = ""

        def on_compile_started(self, event):
            try:
                compiled_by(tmp_path)
            except RunMismatchError as error:
                Second.error = str(error)

    compiled_by(tmp_path, tracker=Second(), iterations=1)
    assert "at work" in Second.error


def test_two_programs_share_one_library_without_mixing(tmp_path):
    library = ExperienceLibrary(tmp_path / "shared.sqlite")
    one = compiled_by(tmp_path / "one", library=library, iterations=1)
    two = compiled_by(tmp_path / "two", library=library, iterations=1, seed=5)
    assert one.detailed_results["run"] != two.detailed_results["run"]
    assert one.detailed_results["iterations"][1]["agents"]["doubler"]["rows"] == 8
    assert two.detailed_results["iterations"][1]["agents"]["doubler"]["rows"] == 8


# Bad input, before anything is paid for


class Unpaid(Tracker):
    def on_compile_started(self, event):
        raise AssertionError("the compile began")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Doubling(), UnpreparedProgramError, r"'doubler' has no LM.*set_lm"),
        (lambda: student(writes_weights=False), None, ""),
        (lambda: "not a program", UnpreparedProgramError, "expected a `dspy.Module`"),
        (lambda: dspy.Module(), UnpreparedProgramError, "no predictors"),
    ],
)
def test_students_that_cannot_be_compiled_are_refused(make, error, message, tmp_path):
    if error is None:
        assert compiled_by(tmp_path, make(), iterations=1)
        return
    with pytest.raises(error, match=message):
        optimizer(tmp_path / "run").compile(make(), trainset=examples(), valset=examples())
    assert not (tmp_path / "run").exists()


def test_an_lm_that_cannot_be_fine_tuned_is_refused_before_the_first_call(tmp_path):
    program, lm = Doubling(), ScriptedLM(skill)
    program.set_lm(lm)
    with pytest.raises(UnpreparedProgramError, match=r"'doubler' cannot be trained.*LocalLM"):
        compiled_by(tmp_path, program)
    assert lm.calls == 0


@pytest.mark.parametrize("adapter", [dspy.JSONAdapter(), dspy.TwoStepAdapter(ScriptedLM(skill))])
def test_an_adapter_that_cannot_write_training_rows_is_refused_before_the_first_call(adapter, tmp_path):
    dspy.configure(adapter=adapter)
    program = student()
    with pytest.raises(UnpreparedProgramError, match="ChatAdapter"):
        compiled_by(tmp_path, program)
    assert program.doubler.lm.calls == 0


@pytest.mark.parametrize(
    ("trainset", "message"),
    [
        ([], "empty"),
        ([dspy.Example(number=1, answer="2")], r"trainset\[0\] has no inputs.*with_inputs"),
        (["text"], r"trainset\[0\] is str"),
        ("text", "expected a list"),
    ],
)
def test_examples_that_cannot_be_used_are_refused(trainset, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        optimizer(tmp_path).compile(student(), trainset=trainset, valset=examples())


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "1.0", dspy.Prediction(answer="no score")])
def test_a_metric_without_a_number_ends_the_compile_at_the_first_run(value, tmp_path):
    program = student()
    optimizer = SiriuS(lambda example, prediction, trace=None: value, run_dir=tmp_path, num_threads=1)
    with pytest.raises(MetricError, match="finite number"):
        optimizer.compile(program, trainset=examples(), valset=examples(range(0, 100, 2)))
    assert program.doubler.lm.calls < 20
    assert ExperienceLibrary(tmp_path / "library.sqlite").verify() == []


def test_a_metric_with_other_parameters_is_refused(tmp_path):
    with pytest.raises(MetricError, match="must take"):
        SiriuS(lambda example: 1.0, run_dir=tmp_path).compile(student(), trainset=examples(), valset=examples())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agents": {"team": ["nobody"]}}, "names the predictor 'nobody'"),
        ({"agents": {"a": ["doubler"], "b": ["doubler"]}}, "in two agents"),
        ({"frozen": ["nobody"]}, "nobody"),
        ({"frozen": ["doubler", "writer.predict"]}, "All agents"),
        ({"collect": Collect(demos={"nobody": []})}, "nobody"),
        ({"collect": Collect(samples=0)}, "samples"),
        ({"iterations": 1.5}, "iterations"),
        ({"collect": Collect(temperature=0.0)}, "temperature"),
        ({"trainer": ProviderTrainer(train_from="best")}, "train_from"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, tmp_path):
    with pytest.raises(UnpreparedProgramError, match=message):
        compiled_by(tmp_path, **settings)


def test_a_compiled_student_is_refused(tmp_path):
    compiled = compiled_by(tmp_path, iterations=1)
    with pytest.raises(UnpreparedProgramError, match="already compiled"):
        compiled_by(tmp_path / "again", compiled)


def test_refine_over_several_agents_is_refused_and_one_group_is_not(tmp_path):
    class Refined(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.refined = dspy.BestOfN(Doubling(), N=2, reward_fn=lambda args, found: 1.0, threshold=1.0)

        def forward(self, number):
            return self.refined(number=number)

    def refined() -> dspy.Module:
        program = Refined()
        program.set_lm(ToyLM(skill=skill))
        return program

    with pytest.raises(UnpreparedProgramError, match="needs one LM"):
        compiled_by(tmp_path, refined())


def test_no_success_at_all_says_what_to_try_and_keeps_the_runs(tmp_path):
    program = Doubling()
    program.set_lm(ToyLM(skill=lambda prompt: "nothing that parses"))
    with pytest.raises(NoSuccessError, match=r"16 x AdapterParseError.*Collect\(demos.*teacher"):
        compiled_by(tmp_path, program)
    library = ExperienceLibrary(tmp_path / "library.sqlite")
    assert library.count(origin="rollout") == 16
    assert library.verify() == []


def test_a_damaged_library_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "library.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    before = path.read_bytes()
    program = student()
    with pytest.raises(Exception, match="library"):
        compiled_by(tmp_path, program)
    assert path.read_bytes() == before
    assert program.doubler.lm.calls == 0


def test_what_is_written_down_is_json_without_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "planted-secret-value")
    program = student()
    program.set_lm(ToyLM(skill=skill, train_kwargs={"api_key": "planted-secret-value"}))
    compiled_by(tmp_path, program, curator=Curator(max_per_example=2))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"planted-secret-value" not in path.read_bytes(), path
    json.loads((tmp_path / "run.json").read_text())
