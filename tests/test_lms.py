"""Which LM answers for a predictor: its own settings on shared weights, LMs that `forward` chooses, launched ones."""

from __future__ import annotations

import asyncio
import threading

import dspy
import pydantic
import pytest
from dspy.utils.exceptions import LMTransportError

from sirius_dspy import Collect, ExperienceLibrary, ProviderTrainer, SharedWeights, SiriuS, evaluate
from sirius_dspy.errors import NoSuccessError, TrainingError, UnpreparedProgramError
from sirius_dspy.lms import keep_settings
from sirius_dspy.testing import ScriptedLM, ScriptedTrainer, ToyLM, chat_reply
from tests.toy import ADAPTER, without_time


@pytest.fixture(autouse=True)
def chat():
    dspy.configure(adapter=ADAPTER)


def questions(number=3):
    return [dspy.Example(question=f"q{i}").with_inputs("question") for i in range(number)]


def compiled_by(run_dir, program, metric=lambda example, prediction: 1.0, teacher=None, trainset=None, **settings):
    settings = {"iterations": 1, "collect": Collect(samples=1), "augmenter": None, "num_threads": 2, **settings}
    trainset = trainset or questions()
    return SiriuS(metric, run_dir=run_dir, **settings).compile(
        program, trainset=trainset, valset=trainset, teacher=teacher
    )


def rows(compiled, iteration=1):
    agents = compiled.detailed_results["iterations"][iteration]["agents"]
    return {agent: (entry["rows"], entry["dropped"]) for agent, entry in agents.items()}


# Settings of predictors that share weights


class DraftAndJudge(dspy.Module):
    def __init__(self):
        super().__init__()
        self.drafter = dspy.Predict("question -> draft")
        self.judge = dspy.Predict("draft -> answer")

    def forward(self, question):
        return self.judge(draft=self.drafter(question=question).draft)


def both(asked):
    return chat_reply(draft=asked.field("question")) if asked.asks_for("draft") else chat_reply(answer="ok")


@pytest.mark.parametrize("settings", [{"agents": {"team": ["drafter", "judge"]}}, {"agents": SharedWeights()}, {}])
@pytest.mark.parametrize("train_from", ["base", "current"])
def test_predictors_that_share_weights_keep_their_own_settings(settings, train_from, tmp_path):
    program = DraftAndJudge()
    program.drafter.lm, program.judge.lm = ToyLM(skill=both, temperature=1.0), ToyLM(skill=both, temperature=0.0)
    compiled_by(tmp_path, program, iterations=2, trainer=ProviderTrainer(train_from=train_from), **settings)
    asked = {*program.drafter.lm.requests, *program.judge.lm.requests}
    assert {prompt.temperature for prompt in asked if prompt.asks_for("answer")} == {0.0}
    assert {prompt.temperature for prompt in asked if prompt.asks_for("draft")} == {1.0}
    assert any("+" in prompt.model and prompt.asks_for("answer") for prompt in asked)  # with new weights as well


def test_one_job_trains_the_weights_that_predictors_share(tmp_path):
    program = DraftAndJudge()
    program.drafter.lm, program.judge.lm = ToyLM(skill=both, temperature=1.0), ToyLM(skill=both, temperature=0.0)
    trainer = ScriptedTrainer({"mixed": ToyLM("toy/better", skill=both)})
    wins = iter([0.0] * 3 + [1.0] * 100)  # the baseline is the worst
    compiled = compiled_by(
        tmp_path, program, lambda example, found: next(wins), agents=SharedWeights(), trainer=trainer
    )
    assert len(trainer.requests) == 1
    assert compiled.drafter.lm.model == compiled.judge.lm.model == "toy/better"
    assert (compiled.drafter.lm.kwargs.get("temperature"), compiled.judge.lm.kwargs["temperature"]) == (None, 0.0)


def test_own_settings_are_laid_over_new_weights():
    trained = dspy.LM("openai/new", temperature=0.7, max_tokens=9, api_base="http://trained", api_key="k")
    base = dspy.LM("openai/old", temperature=0.7, max_tokens=9, api_base="http://old", api_key="k")
    own = dspy.LM("openai/old", temperature=0.0, top_p=0.5, cache=False, num_retries=8, api_base="http://old")
    tuned = keep_settings(trained, base, own)
    expected = {"temperature": 0.0, "top_p": 0.5, "max_tokens": None, "api_base": "http://trained", "api_key": "k"}
    assert (tuned.model, tuned.kwargs, tuned.cache, tuned.num_retries) == ("openai/new", expected, False, 8)
    assert keep_settings(trained, base, base) is trained
    assert trained.kwargs["temperature"] == 0.7


# LMs that `forward` chooses


def strong():
    return ToyLM("toy/strong", skill=lambda asked: chat_reply(answer="strong", draft="strong"))


def weak(asked):
    return chat_reply(draft=asked.field("question"), answer="weak")


class Chooses(dspy.Module):
    """Asks another LM for the judge, in one of the ways that DSPy has."""

    def __init__(self, way, chosen):
        super().__init__()
        self.drafter = dspy.Predict("question -> draft")
        self.judge = dspy.Predict("draft -> answer")
        self.way = way
        self.chosen = chosen

    def forward(self, question):
        draft = self.drafter(question=question).draft
        if self.way == "context":
            with dspy.context(lm=self.chosen):
                return self.judge(draft=draft)
        if self.way == "call":
            return self.judge(draft=draft, lm=self.chosen)
        self.judge.lm = self.chosen
        return self.judge(draft=draft)


@pytest.mark.parametrize("way", ["context", "call", "attribute"])
@pytest.mark.parametrize(
    "settings", [{}, {"frozen": ["judge"]}, {"agents": SharedWeights()}, {"agents": {"a": ["judge", "drafter"]}}]
)
def test_an_lm_that_forward_chooses_answers_and_teaches_nobody(way, settings, tmp_path):
    program, seen = Chooses(way, strong()), []

    def metric(example, found):
        seen.append(found.answer)
        return 1.0

    with dspy.context(lm=ToyLM("toy/weak", skill=weak)):
        compiled = compiled_by(tmp_path, program, metric, iterations=2, **settings)
        assert compiled(question="q0").answer == "strong"
        calls = program.chosen.calls
        again = compiled_by(tmp_path, program, metric, iterations=2, **settings)
    assert set(seen) == {"strong"}
    assert without_time(again.detailed_results) == without_time(compiled.detailed_results)
    assert program.chosen.calls == calls  # a resumed compile finds these runs
    library = ExperienceLibrary(tmp_path / "library.sqlite")
    assert {step.lm for run in library.trajectories() for step in run.steps if step.predictor == "judge"} == {
        "toy/strong"
    }
    for agent, (number, dropped) in rows(compiled).items():
        assert number == (0 if agent == "judge" else 3)
        assert dropped.get("answered by another LM", 0) == (0 if agent == "drafter" else 3)


class Escalates(dspy.Module):
    """One predictor, asked by its own LM first and by a chosen one afterwards."""

    def __init__(self, chosen):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.chosen = chosen

    def forward(self, question):
        first = self.ask(question=question).answer
        with dspy.context(lm=self.chosen):
            return dspy.Prediction(answer=first, second=self.ask(question=f"{question}?").answer)

    async def aforward(self, question):
        first = (await self.ask.acall(question=question)).answer
        with dspy.context(lm=self.chosen):
            second = await self.ask.acall(question=f"{question}?")
        return dspy.Prediction(answer=first, second=second.answer)


def test_trained_weights_answer_where_forward_does_not_choose(tmp_path):
    better = ToyLM("toy/better", skill=lambda asked: chat_reply(answer="better"))
    program, seen = Escalates(strong()), []

    def metric(example, found):
        seen.append((found.answer, found.second))
        return {"weak": 0.5, "better": 1.0}[found.answer]

    with dspy.context(lm=ToyLM("toy/weak", skill=weak)):
        trainer = ScriptedTrainer({"ask": better})
        compiled = compiled_by(tmp_path, program, metric, threshold=0.5, trainer=trainer)
        resumed = compiled_by(tmp_path, program, metric, threshold=0.5, trainer=ScriptedTrainer({"ask": better}))
    assert set(seen) == {("weak", "strong"), ("better", "strong")}
    assert [len(request.rows) for request in trainer.requests] == [3]
    assert program.ask.lm is None
    for found in (compiled, resumed):
        assert found.ask.lm.model == "toy/better"
        for default in (None, ToyLM("toy/weak", skill=weak), strong()):  # whatever is DSPy's LM when it is called
            with dspy.context(lm=default):
                answer = found(question="q0")
                awaited = asyncio.run(found.acall(question="q0"))
            assert (answer.answer, answer.second) == (awaited.answer, awaited.second) == ("better", "strong")


def test_a_program_that_chooses_no_lm_is_compiled_to_plain_predictors(tmp_path):
    program = DraftAndJudge()
    trainer = ScriptedTrainer(lambda request: ToyLM(f"toy/{request.agent}", skill=both))
    wins = iter([0.0] * 3 + [1.0] * 100)
    with dspy.context(lm=ToyLM(skill=both)):
        compiled = compiled_by(tmp_path, program, lambda example, found: next(wins), trainer=trainer)
    assert [compiled.drafter.lm.model, compiled.judge.lm.model] == ["toy/drafter", "toy/judge"]
    assert not {"forward", "aforward"} & {*vars(compiled.drafter), *vars(compiled.judge)}
    assert compiled.callbacks == []


def test_an_agent_without_an_lm_that_was_not_trained_stays_without(tmp_path):
    program = DraftAndJudge()
    trainer = ScriptedTrainer({"drafter": ToyLM("toy/better", skill=both)})
    wins = iter([0.0] * 3 + [1.0] * 100)
    with dspy.context(lm=ToyLM(skill=both)):
        compiled = compiled_by(tmp_path, program, lambda *found: next(wins), trainer=trainer, frozen=["judge"])
    assert (compiled.drafter.lm.model, compiled.judge.lm) == ("toy/better", None)


def test_steps_of_a_chosen_lm_are_not_repaired(tmp_path):
    from sirius_dspy import CriticAugmenter

    def answers(asked):
        return chat_reply(feedback="f", rewritten="r", draft="again" if asked.field("feedback") else "no", answer="no")

    with dspy.context(lm=ToyLM("toy/weak", skill=answers)):
        program = Chooses("context", strong())
        metric = lambda example, found: float(example.question == "q0")  # noqa: E731
        compiled_by(tmp_path, program, metric, augmenter=CriticAugmenter())
    repairs = list(ExperienceLibrary(tmp_path / "library.sqlite").repairs())
    assert {attempt.predictor for repair in repairs for attempt in repair.attempts} == {"drafter"}


def test_a_teachers_answers_become_rows_though_its_lm_is_another(tmp_path):
    teacher, program = DraftAndJudge(), DraftAndJudge()
    teacher.set_lm(ScriptedLM(both, model="teacher"))
    program.set_lm(ToyLM(skill=lambda asked: chat_reply(draft="?", answer="?")))
    compiled = compiled_by(tmp_path, program, lambda example, found: found.answer == "ok", teacher=teacher)
    assert {agent: number for agent, (number, _) in rows(compiled).items()} == {"drafter": 3, "judge": 3}


# Restored and launched LMs


class Served(ToyLM):
    """Learns as a toy does; new weights answer only after they were launched."""

    def __init__(self, *arguments, fails=False, **settings):
        super().__init__(*arguments, **settings)
        self.events = []
        provider, answer = self.provider, self.engine.answer
        up = set()

        def launch(lm, launch_kwargs=None):
            self.events.append(("launch", lm.model))
            if fails:
                raise ImportError("no server here")
            lm.kwargs["top_k"] = 7  # as a provider writes the address of its server
            up.add(lm.model)

        def kill(lm, launch_kwargs=None):
            self.events.append(("kill", lm.model))
            up.discard(lm.model)

        def served(asked):
            if "+" in asked.model and asked.model not in up:
                raise LMTransportError("connection refused")
            return answer(asked)

        provider.launch, provider.kill, self.engine.answer = launch, kill, served


class Single(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.ask(question=question)


def test_new_weights_are_launched_once_and_the_last_ones_answer(tmp_path):
    lm = Served(skill=lambda asked: chat_reply(answer=asked.field("question") if asked.temperature == 1.0 else "?"))
    program = Single()
    program.set_lm(lm)
    metric = lambda example, found: found.answer == example.question  # noqa: E731
    settings = {"iterations": 2, "collect": Collect(samples=2), "trainer": ProviderTrainer(train_from="current")}
    compiled = compiled_by(tmp_path, program, metric, **settings)
    assert compiled.detailed_results["best_score"] == 1.0
    assert compiled(question="q0").answer == "q0"
    launched = [model for event, model in lm.events if event == "launch"]
    assert len(launched) == len(set(launched))
    running = set(launched) - {model for event, model in lm.events if event == "kill"}
    assert running == {compiled.ask.lm.model}
    assert "toy/base" not in launched
    lm.events.clear()
    again = compiled_by(tmp_path, program, metric, **settings)
    assert again(question="q1").answer == "q1"
    assert ("launch", compiled.ask.lm.model) in lm.events


class Loaded(ToyLM):
    """Weights that are loaded at their first call, or when asked to."""

    def __init__(self, model, load):
        super().__init__(model, skill=lambda asked: chat_reply(answer="x", draft="x", verdict="x"))
        self.provider.loads_when_asked = True
        self.provider.launch = lambda lm, launch_kwargs=None: load(lm.model)


@pytest.mark.parametrize("fails", [False, True])
def test_weights_that_a_program_needs_are_loaded_side_by_side(fails):
    both, loaded = threading.Barrier(2), []

    def load(model):
        both.wait(timeout=30)
        loaded.append(model)
        if fails:
            raise ImportError("its first call will say so")

    program = DraftAndJudge()
    for number, predictor in enumerate(program.predictors()):
        predictor.lm = Loaded(f"toy/{number}", load)
    assert evaluate(program, questions(), lambda example, prediction: 1.0, num_threads=2).score == 1.0
    assert sorted(loaded) == ["toy/0", "toy/1"]


def test_weights_that_cannot_be_launched_are_named_and_what_was_launched_is_killed(tmp_path):
    program = Single()
    program.set_lm(Served(skill=lambda asked: chat_reply(answer="x"), fails=True))
    with pytest.raises(TrainingError, match=r"'ask' are trained, but could not be launched: no server here") as caught:
        compiled_by(tmp_path, program)
    assert caught.value.agent == "ask"


def test_what_was_launched_is_killed_when_the_compile_breaks_off(tmp_path):
    lm, program = Served(skill=lambda asked: chat_reply(answer="x")), Single()
    program.set_lm(lm)

    def metric(example, found):
        if lm.events:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        compiled_by(tmp_path, program, metric)
    assert [event for event, _ in lm.events] == ["launch", "kill"]


class Remembers(ProviderTrainer):
    def __init__(self, train_from):
        super().__init__(train_from=train_from)
        self.restored = []

    def restore(self, lm, model, workdir):
        self.restored.append((lm.model, model))
        return super().restore(lm, model, workdir)


@pytest.mark.parametrize("train_from", ["base", "current"])
def test_jobs_are_restored_on_resume_alone_and_from_the_lm_they_started_with(train_from, tmp_path):
    def skill(asked):
        return chat_reply(answer=asked.field("question") if asked.temperature == 1.0 else "?")

    metric = lambda example, found: found.answer == example.question  # noqa: E731
    program, first, second = Single(), Remembers(train_from), Remembers(train_from)
    program.set_lm(ToyLM(skill=skill))
    settings = {"collect": Collect(samples=2), "iterations": 2, "gate": None}
    compiled_by(tmp_path, program, metric, trainer=first, **settings)
    assert first.restored == []
    compiled_by(tmp_path, program, metric, trainer=second, **{**settings, "iterations": 3})
    assert {base for base, _ in second.restored} <= (
        {"toy/base"} if train_from == "base" else {"toy/base", *trained(second)}
    )
    if train_from == "current":
        assert any(base != "toy/base" for base, _ in second.restored)


def trained(trainer):
    return {model for _, model in trainer.restored}


# Images


class Looks(dspy.Module):
    def __init__(self, annotation):
        super().__init__()
        fields = {"picture": (annotation, dspy.InputField()), "answer": (str, dspy.OutputField())}
        self.look = dspy.Predict(dspy.Signature(fields, "Look."))

    def forward(self, picture):
        return self.look(picture=picture)


@pytest.mark.parametrize(
    ("annotation", "wrap"),
    [
        (dspy.Image, lambda image: image),
        (list[dspy.Image], lambda image: [image]),
        (dict[str, dspy.Image | None], lambda image: {"a": image}),
        (str, lambda image: image),
        (object, lambda image: {"pages": [image]}),
    ],
)
def test_agents_that_read_images_with_an_lm_that_learns_text_are_refused(annotation, wrap, tmp_path):
    lm, program = ToyLM(skill=lambda asked: chat_reply(answer="ok")), Looks(annotation)
    program.set_lm(lm)
    picture = wrap(dspy.Image("https://example.com/cat.png"))
    trainset = [dspy.Example(picture=picture).with_inputs("picture")]
    with pytest.raises(UnpreparedProgramError, match=r"'look' reads images.*'picture'.*frozen"):
        compiled_by(tmp_path, program, trainset=trainset)
    assert lm.calls == 0


class Finds(dspy.Module):
    """Has a picture of its own for its second question."""

    def __init__(self):
        super().__init__()
        self.look = dspy.Predict("seen -> answer")

    def forward(self, question):
        return self.look(seen=dspy.Image("https://example.com/cat.png") if question == "1" else question)


@pytest.mark.parametrize(("names", "rows"), [("01", 1), ("1", 0)], ids=["some", "all"])
def test_images_that_are_known_in_a_run_only_are_not_taught_to_an_lm_that_learns_text(names, rows, tmp_path):
    program = Finds()
    program.set_lm(ToyLM(skill=lambda asked: chat_reply(answer="ok")))
    trainset = [dspy.Example(question=name).with_inputs("question") for name in names]
    if not rows:
        with pytest.raises(NoSuccessError, match=r"1 x has images or other media.*frozen"):
            compiled_by(tmp_path, program, trainset=trainset)
        return
    agent = compiled_by(tmp_path, program, trainset=trainset).detailed_results.iterations[1].agents["look"]
    assert (agent.rows, agent.dropped) == (1, {"has images or other media": 1})


class Names(pydantic.RootModel[list[str]]):
    def __iter__(self):
        return iter(self.root)


@pytest.mark.parametrize(
    "value",
    [dspy.Code(code="print()"), dspy.Reasoning(content="So."), Names(["a", "bcd"])],
    ids=lambda value: type(value).__name__,
)
def test_text_types_and_models_that_iterate_are_no_images(value, tmp_path):
    lm, program = ToyLM(skill=lambda asked: chat_reply(answer="ok")), Looks(type(value))
    program.set_lm(lm)
    compiled_by(tmp_path, program, trainset=[dspy.Example(picture=value).with_inputs("picture")])
    assert lm.calls > 0
