import asyncio
import copy
import json
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from dspy.clients.utils_finetune import TrainingStatus
from dspy.lm15 import Message, RateLimitError, Request
from dspy.utils.exceptions import LMUnexpectedError, LMUnsupportedFeatureError

from sirius_dspy.errors import ModelNotFoundError, TrainingError, UnpreparedProgramError
from sirius_dspy.testing import (
    Prompt,
    ScriptedLM,
    ScriptedTrainer,
    ToyLM,
    TrackerContract,
    TrainerContract,
    UnexpectedCallError,
    chat_reply,
    compile_events,
)
from sirius_dspy.tracking.events import Tracker, Trackers
from sirius_dspy.training.trainers import ProviderTrainer, TrainingRequest
from tests import ROOT

CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)


def shout(prompt):
    return prompt.user.upper()


def row(question, answer, system="Be brief."):
    roles = (("system", system), ("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": text} for role, text in roles]}


def ask(lm, question, system="Be brief."):
    return lm(Request(model=lm.model, system=system, messages=(Message.user(question),))).text


def finetuned(lm, rows, **train_kwargs):
    result = lm.finetune(rows, "chat", train_kwargs).result(timeout=20)
    if isinstance(result, Exception):
        raise result
    return result


class TestScriptedLM:
    def test_function_mapping_and_sequence(self):
        assert ScriptedLM(shout)("hello") == ["HELLO"]
        by_text = ScriptedLM({"Oslo": "fjord", "o": "other"})
        assert [by_text(text) for text in ("to Oslo", "to Rome")] == [["fjord"], ["other"]]
        in_order = ScriptedLM(["a", "b"])
        assert [in_order("?"), in_order("?")] == [["a"], ["b"]]

    @pytest.mark.parametrize("answers", [{"Oslo": "fjord"}, ["only one"], ()])
    def test_an_unexpected_call_fails_with_its_prompt(self, answers):
        lm = ScriptedLM(answers)
        if answers:
            lm("Oslo")
        with pytest.raises(LMUnexpectedError, match="why is the sky blue") as caught:
            lm("why is the sky blue")
        assert isinstance(caught.value.__cause__, UnexpectedCallError)

    def test_a_mapping_looks_at_the_last_user_message_only(self):
        predictor = dspy.Predict("colour -> word")
        predictor.demos = [dspy.Example(colour="red", word="x")]
        with dspy.context(adapter=CHAT, lm=ScriptedLM({"red": "of the demo", "blue": chat_reply(word="real")})):
            assert predictor(colour="blue").word == "real"

    @pytest.mark.parametrize("answers", ["yes", iter(["yes"]), 3])
    def test_what_is_no_script_is_refused(self, answers):
        with pytest.raises(TypeError, match="expected a function, a mapping or a list"):
            ScriptedLM(answers)

    def test_a_reply_that_is_no_text_is_said(self):
        with pytest.raises(LMUnexpectedError, match="answered 3"):
            ScriptedLM(lambda prompt: 3)("?")

    def test_exceptions_in_a_script_reach_dspy(self):
        lm = ScriptedLM([RateLimitError("slow down"), "late"], num_retries=1)
        assert lm("?") == ["late"]
        assert lm.calls == 2

    def test_requests_show_what_was_asked(self):
        lm = ScriptedLM(lambda prompt: chat_reply(answer=int(prompt.field("number")) * 2), model="scripted/double")
        with dspy.context(lm=lm, adapter=CHAT):
            assert dspy.Predict("number: int, note -> answer: int")(number=4, note="a\n\nb: c").answer == 8
        (prompt,) = lm.requests
        assert (prompt.model, prompt.field("note"), prompt.field("answer")) == ("scripted/double", "a\n\nb: c", None)
        assert prompt.asks_for("answer")
        assert not prompt.asks_for("number")
        assert "`number`" in prompt.system
        assert prompt.text.startswith(prompt.system)

    def test_plain_prompts_are_read_too(self):
        text = "context: one\ntwo\nquestion: why?\nReply with the lines 'thought:', 'answer:'."
        prompt = Prompt("m", "", (("user", "question: demo"), ("assistant", "x"), ("user", text)))
        assert (prompt.field("context"), prompt.field("question")) == ("one\ntwo", "why?")
        assert prompt.asks_for("thought")
        assert not prompt.asks_for("context")

    def test_async_calls_and_latency(self):
        lm = ScriptedLM(shout, latency_s=0.01)

        async def gather():
            return await asyncio.gather(*(lm.acall(str(i)) for i in range(20)))

        assert asyncio.run(gather()) == [[str(i)] for i in range(20)]
        assert lm.calls == 20

    def test_threads_use_each_answer_once(self):
        lm = ScriptedLM([str(i) for i in range(200)])
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda _: lm("?")[0], range(200)))
        assert sorted(replies, key=int) == [str(i) for i in range(200)]
        assert lm.calls == 200

    def test_copies_share_one_script_and_count(self):
        lm = ScriptedLM(["a", "b", "c"])
        copies = lm.copy(temperature=1.0), copy.deepcopy(lm)
        assert [lm("?")[0], *(each("?")[0] for each in copies)] == ["a", "b", "c"]
        assert [each.calls for each in (lm, *copies)] == [3, 3, 3]

    def test_nothing_is_cached_unless_asked_for(self):
        lm = ScriptedLM(["a", "b"])
        assert [lm("?"), lm("?")] == [["a"], ["b"]]

    def test_rollout_id_becomes_the_seed(self):
        lm = ScriptedLM(shout)
        lm("?", rollout_id=7, temperature=1.0)
        asyncio.run(lm.acall("?", rollout_id=8, temperature=1.0))
        lm.copy(rollout_id=9, temperature=1.0)("?")
        lm("?", rollout_id=7, seed=3, temperature=1.0)
        lm("?", seed=3, temperature=0)
        assert [prompt.seed for prompt in lm.requests] == [7, 8, 9, 3, None]

    @pytest.mark.parametrize("answers", [shout, {"?": "!"}, ["!", "!"]], ids=["function", "mapping", "sequence"])
    def test_saved_programs_keep_the_script(self, tmp_path, answers):
        predictor = dspy.Predict("question -> answer")
        predictor.lm = ScriptedLM(answers, temperature=0.5, latency_s=0.001)
        predictor.save(tmp_path / "program.json")
        loaded = dspy.Predict("question -> answer")
        loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
        assert type(loaded.lm) is ScriptedLM
        assert loaded.lm("?") == ScriptedLM(answers)("?")
        assert loaded.lm.kwargs["temperature"] == 0.5

    def test_a_function_that_cannot_be_imported_is_left_out(self):
        state = ScriptedLM(lambda prompt: "x").dump_state()
        json.dumps(state)
        with pytest.raises(LMUnexpectedError):
            ScriptedLM.load_state(state)("?")

    def test_it_cannot_be_trained(self):
        with pytest.raises(LMUnsupportedFeatureError):
            ScriptedLM(shout).finetune([row("a", "b")], "chat")


class TestToyLM:
    def test_learns_by_heart_and_leaves_the_base_alone(self):
        lm = ToyLM(skill=shout)
        trained = finetuned(lm, [row("what", "that"), row("who", "me")])
        assert [ask(trained, text) for text in ("what", "who", "why")] == ["that", "me", "WHY"]
        assert ask(trained, "what", system="Be long.") == "WHAT"
        assert ask(lm, "what") == "WHAT"
        assert trained.model.startswith("toy/base+")
        assert trained.memory[("Be brief.", "what")] == "that"
        assert lm.memory == {}

    def test_trained_on_program_rows_it_answers_the_program(self):
        predictor = dspy.Predict("question -> answer")
        signature, inputs = predictor.signature, {"question": "2+2?"}
        rows = [CHAT.format_finetune_data(signature, [], inputs, {"answer": "4"})]
        lm = finetuned(ToyLM(skill=lambda prompt: chat_reply(answer="?")), rows)
        demo = dspy.Example(question="1+1?", answer="2")
        with dspy.context(adapter=CHAT, lm=lm):
            assert predictor(question="2+2?").answer == "4"
            assert predictor(question="2+2?", demos=[demo]).answer == "4"
            assert predictor(question="3+3?").answer == "?"

    def test_ids_say_what_was_learnt_on_what(self):
        rows = [row("a", "1"), row("b", "2")]
        one, same, reversed_ = (finetuned(ToyLM(), r).model for r in (rows, list(rows), rows[::-1]))
        assert one == same == reversed_
        assert finetuned(ToyLM(), rows[:1]).model != one
        assert finetuned(ToyLM("toy/other"), rows).model.startswith("toy/other+")
        again = finetuned(finetuned(ToyLM(), rows), rows)
        assert again.model not in (one, "toy/base")
        assert again.memory == finetuned(ToyLM(), rows).memory

    def test_training_goes_on_from_what_was_known(self):
        second = finetuned(finetuned(ToyLM(), [row("a", "1")]), [row("b", "2")])
        assert [ask(second, text) for text in ("a", "b")] == ["1", "2"]
        from_base = finetuned(second.copy(finetuning_model="toy/base"), [row("b", "2")])
        assert set(from_base.memory) == {("Be brief.", "b")}

    def test_unlearnt_without_skill_fails_with_the_prompt(self):
        with pytest.raises(LMUnexpectedError, match=r"'toy/base' has not memorized[^?]*why") as caught:
            ToyLM()("why")
        assert isinstance(caught.value.__cause__, UnexpectedCallError)

    def test_samples_differ_by_seed_and_greedy_has_none(self):
        lm = ToyLM(skill=lambda prompt: f"sample {prompt.seed}")
        assert lm("?", rollout_id=2, temperature=0.7) == ["sample 2"]
        assert lm("?", rollout_id=3, temperature=0.7) == ["sample 3"]
        assert lm("?", temperature=0) == ["sample None"]

    def test_seed_decides_between_rows_that_contradict_each_other(self):
        rows = [row("a", str(number)) for number in range(50)]
        replies = [ask(finetuned(ToyLM(), rows, seed=seed), "a") for seed in (1, 1, 2)]
        assert replies[0] == replies[1] != replies[2]

    def test_progress_ends_with_nothing_missed(self):
        reports = []
        finetuned(ToyLM(), [row(str(i), "x") for i in range(25)], on_progress=lambda *r: reports.append(r))
        assert [step for step, _, _ in reports] == list(range(1, 11))
        losses = [loss for _, _, loss in reports]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] == 23 / 25
        assert losses[-1] == 0.0

    @pytest.mark.parametrize(("lm_options", "rows"), [({"fail_training": True}, [row("a", "b")]), ({}, [])])
    def test_failed_training_is_a_training_error(self, caplog, lm_options, rows):
        job = ToyLM(**lm_options).finetune(rows, "chat")
        with caplog.at_level(logging.CRITICAL):
            assert isinstance(job.result(timeout=20), TrainingError)
        assert job.status() is TrainingStatus.failed

    def test_a_job_can_be_cancelled(self):
        running, go_on = threading.Event(), threading.Event()

        def wait(step, total, loss):
            running.set()
            go_on.wait(20)

        job = ToyLM().finetune([row("a", "1"), row("b", "2")], "chat", {"on_progress": wait})
        running.wait(20)
        assert job.status() is TrainingStatus.running
        assert job.cancel()
        go_on.set()
        assert "cancelled after step 1 of 2" in str(job.result(timeout=20))
        assert job.status() is TrainingStatus.cancelled

    @pytest.mark.parametrize("way", ["argument", "environment"])
    def test_another_process_finds_the_weights(self, tmp_path, way):
        trained = finetuned(ToyLM(), [row("a", f"learnt for {way}")], output_dir=str(tmp_path / "runs" / "solver"))
        assert trained.folder == tmp_path / "runs" / "solver"
        done = in_another_process(
            f"lm = ToyLM(registry={str(tmp_path) if way == 'argument' else None!r}).copy(model={trained.model!r})\n"
            "print(lm.memory[('Be brief.', 'a')], lm.folder)",
            SIRIUS_TOY_REGISTRY=str(tmp_path) if way == "environment" else "",
        )
        assert done.stdout.strip() == f"learnt for {way} {trained.folder}"

    def test_weights_go_to_the_registry_by_default(self, tmp_path):
        assert finetuned(ToyLM(registry=tmp_path), [row("a", "in the registry")]).folder == tmp_path
        assert finetuned(ToyLM(), [row("a", "only in memory")]).folder is None

    def test_a_provider_trainer_restores_after_a_restart(self, tmp_path):
        request = TrainingRequest("solver", ToyLM(), [row("a", "restored")], tmp_path, 0, lambda *report: None)
        model = ProviderTrainer().train(request).model
        done = in_another_process(
            "from pathlib import Path\nfrom sirius_dspy.training.trainers import ProviderTrainer\n"
            f"lm = ProviderTrainer().restore(ToyLM(), {model!r}, Path({str(tmp_path)!r}))\n"
            "print(lm.memory[('Be brief.', 'a')])"
        )
        assert done.stdout.strip() == "restored"

    def test_a_provider_without_weights_gets_no_output_dir(self, tmp_path):
        lm = ToyLM(writes_weights=False)
        request = TrainingRequest("solver", lm, [row("a", "remote")], tmp_path, 0, lambda *report: None)
        assert ask(ProviderTrainer().train(request), "a") == "remote"
        assert not list(tmp_path.iterdir())

    def test_missing_and_damaged_weights_are_said(self, tmp_path):
        for make in (lambda: ToyLM("toy/base+0123"), lambda: ToyLM().copy(model="toy/base+0123")):
            with pytest.raises(ModelNotFoundError, match=r"toy/base\+0123.*registry="):
                make()
        (tmp_path / "toy-4567.json").write_text('{"base": "toy/base", "parent": "toy/base", "memory": []}')
        with pytest.raises(ModelNotFoundError, match="holds 'toy/base'"):
            ToyLM("toy/base+4567", registry=tmp_path)

    def test_saved_programs_find_their_weights_again(self, tmp_path):
        predictor = dspy.Predict("question -> answer")
        predictor.lm = finetuned(ToyLM(skill=shout, registry=tmp_path), [row("a", "saved")])
        predictor.save(tmp_path / "program.json")
        loaded = dspy.Predict("question -> answer")
        loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
        assert [ask(loaded.lm, text) for text in ("a", "b")] == ["saved", "B"]
        assert finetuned(loaded.lm, [row("b", "more")]).folder == tmp_path

    def test_deep_copies_share_weights_and_count(self):
        lm = ToyLM(skill=shout)
        twin = copy.deepcopy(lm)
        twin("?")
        assert lm.calls == 1
        assert ask(finetuned(twin, [row("a", "b")]), "a") == "b"


def in_another_process(script, **env):
    script = "from sirius_dspy.testing import ToyLM\n" + script
    env = {**os.environ, **env}
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=True)


def test_fakes_need_no_pytest():
    done = in_another_process("import sys\nprint('pytest' in sys.modules)")
    assert done.stdout.strip() == "False"


class TestProviderTrainerWithToyLM(TrainerContract):
    @pytest.fixture
    def trainer(self):
        return ProviderTrainer()

    @pytest.fixture
    def lm(self):
        return ToyLM(skill=shout)

    @pytest.fixture
    def refused(self):
        return "judge", ScriptedLM(shout)


class TestScriptedTrainer(TrainerContract):
    @pytest.fixture
    def trainer(self):
        return ScriptedTrainer({"solver": ScriptedLM(shout, model="scripted/trained")})

    @pytest.fixture
    def lm(self):
        return ScriptedLM(shout)

    @pytest.fixture
    def refused(self):
        return "judge", ScriptedLM(shout)

    def test_records_what_it_was_asked(self, trainer, lm, tmp_path):
        request = TrainingRequest("solver", lm, [row("a", "b")], tmp_path, 3, lambda *report: None)
        trainer.check("solver", lm)
        assert trainer.train(request).model == "scripted/trained"
        assert trainer.requests == [request]
        assert trainer.checked == ["solver"]

    def test_takes_a_function(self, lm, tmp_path):
        request = TrainingRequest("solver", lm, [row("a", "b")], tmp_path, 3, lambda *report: None)
        trainer = ScriptedTrainer(lambda request: request.lm.copy(model=f"scripted/{request.agent}-{request.seed}"))
        assert trainer.train(request).model == "scripted/solver-3"
        assert trainer.restore(lm, "scripted/solver-3", tmp_path).model == "scripted/solver-3"


class Noter(Tracker):
    def __init__(self):
        self.seen = []

    def on_rolled_out(self, event):
        self.seen.append(event.trajectory.id)


class TestTrackerBase(TrackerContract):
    @pytest.fixture
    def tracker(self):
        return Tracker()


class TestStrictTrackers(TrackerContract):
    @pytest.fixture
    def tracker(self):
        return Trackers([Noter(), Tracker()], strict=True)


class Broken(TrackerContract):
    """A contract that a bad tracker must fail."""


@pytest.mark.parametrize(
    ("hook", "check"),
    [
        ("on_compile_ended", "test_follows_a_whole_compile"),
        ("on_training_progress", "test_progress_comes_from_another_thread"),
    ],
)
def test_the_tracker_contract_finds_a_hook_that_raises(tmp_path, hook, check):
    tracker = Tracker()
    setattr(tracker, hook, lambda event: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        getattr(Broken(), check)(tracker, tmp_path)


def test_the_trainer_contract_finds_a_trainer_that_gives_the_old_lm_back(tmp_path):
    trainer = ScriptedTrainer(lambda request: request.lm)
    with pytest.raises(AssertionError):
        TrainerContract().test_training_gives_another_lm(trainer, ScriptedLM(shout), tmp_path)
    with pytest.raises(pytest.fail.Exception):
        TrainerContract().test_check_refuses_with_the_name_of_the_agent(trainer, ("judge", ScriptedLM(shout)))


def test_every_hook_of_a_compile_gets_an_event(tmp_path):
    of_experiments = {"on_experiment_started", "on_cell_started", "on_cell_ended", "on_experiment_ended"}
    hooks = {name for name in vars(Tracker) if name.startswith("on_")}
    assert of_experiments < hooks
    assert {hook for hook, _ in compile_events(tmp_path)} == hooks - of_experiments


def test_a_scripted_trainer_names_the_agents_it_knows():
    with pytest.raises(UnpreparedProgramError, match=r"'judge'.*\['solver'\]"):
        ScriptedTrainer({"solver": ScriptedLM()}).check("judge", ScriptedLM())
