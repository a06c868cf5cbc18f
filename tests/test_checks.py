"""A setting that cannot be meant is a typed error that names it, before the first LM call."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from programs.negotiation.curator import GameCurator
from sirius_dspy import Collect, CriticAugmenter, Curator, ExperienceLibrary, LocalLM, LoraOptions, RepairDemos, SiriuS
from sirius_dspy.baselines import GEPA, BootstrapFinetune, MajorityVote, MIPROv2, PromptedTeam, Rationalizer
from sirius_dspy.errors import DatasetError, SettingsError, SiriuSError, UnpreparedProgramError
from sirius_dspy.repair.leak import LeakGuard
from sirius_dspy.testing import ToyLM
from sirius_dspy.tracking.events import Tracker
from sirius_dspy.training.trainers import ProviderTrainer
from tests.toy import ADAPTER, Doubling, exact, examples, optimizer, skill, student


@pytest.fixture(autouse=True)
def chat() -> None:
    dspy.configure(adapter=ADAPTER)


def refused(run_dir: Path, **options: Any) -> SiriuSError:
    """The error of a compile with these settings, for which no LM was called and no folder was made."""
    program, made = student(), optimizer(run_dir, **{name: options[name] for name in options if name != "metric"})
    made.metric = options.get("metric", exact)
    with pytest.raises(SiriuSError) as caught:
        made.compile(program, trainset=examples(), valset=examples())
    assert program.doubler.lm.calls == 0
    assert not run_dir.exists()
    return caught.value


NO_NUMBER = [None, "1", "a", [], (), {}, math.nan, math.inf, -math.inf, True, object(), float, 1j, 10**400]
NO_WHOLE = [*NO_NUMBER[1:], 0.5, -1]
NO_FLAG = [None, 0, 1, "yes", [], object()]
NO_NAMES = ["judge", "", None, 1, [1], [None], {"judge": 1}, {"judge"}.add, object()]

WRONG: dict[str, list[Any]] = {
    "metric": [None, "f1", 1, exact(dspy.Example(answer=1), dspy.Example(answer=1)), Doubling, [exact]],
    "threshold": NO_NUMBER,
    "iterations": [None, 0, *NO_WHOLE],
    "samples": [None, 0, *NO_WHOLE],
    "until_solved": NO_FLAG,
    "temperature": [-0.1, *NO_NUMBER],
    "augmenter": [CriticAugmenter, "critic", 1, ToyLM("x"), exact],
    "max_repairs": NO_WHOLE,
    "curator": [Curator, GameCurator, 7, "all", lambda: Curator()],
    "trainer": [ProviderTrainer, "lora", {"n_epochs": 1}, ToyLM("x")],
    "agents": [{"team": []}, {"team": "doubler"}, {"team": None}, ["doubler"], "doubler", {1: ["doubler"]}, 3],
    "frozen": NO_NAMES,
    "mixed": NO_FLAG,
    "cumulative": NO_FLAG,
    "train_from": ["best", None, 1, True, ["base"]],
    "cold_start": [{"doubler": None}, {"doubler": [1]}, {"doubler": {"number": 1}}, [dspy.Example()], "doubler", 1],
    "promote": NO_FLAG,
    "tracker": [Tracker, "mlflow", [Tracker()], 1],
    "library": ["runs.sqlite", Path("runs.sqlite"), ExperienceLibrary, 1],
    "run_dir": [1, True, [], b"runs", "", Path],
    "num_threads": [0, *NO_WHOLE],
    "retries": [-1, *NO_WHOLE],
    "call_timeout_s": [0, -1.0, "600", True, float("nan")],
    "run_timeout_s": [0, -1.0, "600", True, float("nan")],
    "max_unfinished": [-1, *NO_WHOLE],
    "seed": [None, *NO_WHOLE],
    "accept_changes": [*NO_NAMES, ["nothing"], ["metrics.code"]],
}


@pytest.mark.parametrize("name", WRONG)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_setting_of_the_wrong_kind_is_refused_by_name(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = data.draw(st.sampled_from(WRONG[name]))
    error = refused(tmp_path / "run", **{name: value}) if name != "run_dir" else refused_folder(value)
    assert isinstance(error, SettingsError)
    assert isinstance(error, ValueError)
    assert f"`{name}`" in str(error)
    assert "0x" not in str(error)


def refused_folder(value: Any) -> SiriuSError:
    with pytest.raises(SiriuSError) as caught:
        SiriuS(exact, run_dir=value).compile(student(), trainset=examples(), valset=examples())
    assert not list(Path().iterdir())
    return caught.value


def test_the_table_has_every_setting():
    assert set(WRONG) == set(vars(optimizer(Path("x"))))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"curator": Curator}, r"the class Curator.*Pass an object of the class: `Curator\(\.\.\.\)`"),
        ({"library": "runs.sqlite"}, r"ExperienceLibrary\('runs.sqlite'\)"),
        ({"tracker": [Tracker()]}, r"Trackers\(\["),
        ({"frozen": "judge"}, r"\['judge'\]"),
        ({"mixed": True, "agents": {"team": ["doubler"]}}, "`mixed=True`.*`agents`"),
        ({"samples": 2, "temperature": 0}, "all 2 samples would be the same"),
        (
            {"cold_start": {"doubler": [dspy.Example(question="q", doubled="2")]}},
            r"cold_start\['doubler'\]\[0\].*input",
        ),
        ({"cold_start": {"doubler": [dspy.Example(number=1)]}}, r"cold_start\['doubler'\]\[0\] has none of the output"),
        ({"curator": Curator(max_per_example=0)}, "`max_per_example` of Curator is 0"),
        ({"curator": Curator(max_rows="all")}, "`max_rows` of Curator is 'all'"),
        ({"curator": GameCurator(max_games=None)}, "`max_games` of GameCurator is None"),
        ({"trainer": ProviderTrainer(3)}, "`train_kwargs` of ProviderTrainer is 3"),
        ({"trainer": ProviderTrainer({1: 2})}, "`train_kwargs` of ProviderTrainer"),
        ({"augmenter": CriticAugmenter("gpt")}, "`critic` of CriticAugmenter is 'gpt'"),
        ({"augmenter": CriticAugmenter(rephraser=ToyLM)}, "`rephraser` of CriticAugmenter is the class ToyLM"),
        ({"augmenter": CriticAugmenter(max_feedback=-1)}, "`max_feedback`"),
        ({"augmenter": CriticAugmenter(max_regenerations=1.5)}, "`max_regenerations`"),
        ({"augmenter": CriticAugmenter(temperature=math.nan)}, "`temperature` of CriticAugmenter"),
        ({"augmenter": CriticAugmenter(max_feedback=2, temperature=0)}, "all tries would be the same"),
        ({"augmenter": CriticAugmenter(rephrase="no")}, "`rephrase`"),
        ({"augmenter": CriticAugmenter(show_earlier=None)}, "`show_earlier`"),
        ({"augmenter": CriticAugmenter(demos={"critique": []})}, "`demos` of CriticAugmenter"),
        ({"augmenter": CriticAugmenter(guard=LeakGuard)}, "`guard` of CriticAugmenter is the class LeakGuard"),
        ({"augmenter": CriticAugmenter(guard=LeakGuard("("))}, "`traces` of LeakGuard"),
        ({"augmenter": CriticAugmenter(guard=LeakGuard(answering="doubler"))}, "`answering` of LeakGuard is 'doubler'"),
        ({"augmenter": CriticAugmenter(guard=LeakGuard(answering=["nobody"]))}, "nobody"),
        ({"augmenter": CriticAugmenter(demos=RepairDemos(critique=["text"]))}, "`critique` of RepairDemos"),
        ({"augmenter": CriticAugmenter(demos=RepairDemos(rephrase=[dspy.Example(task="t")]))}, "RepairDemos.rephrase"),
        ({"augmenter": CriticAugmenter(demos=RepairDemos(regenerate={"doubler": [dspy.Example(a=1)]}))}, "regenerate"),
        ({"augmenter": Rationalizer(guard="no")}, "`guard` of Rationalizer"),
    ],
)
def test_settings_of_parts_and_those_that_contradict_each_other_are_refused(options, said, tmp_path):
    with pytest.raises(SettingsError, match=said):
        raise refused(tmp_path / "run", **options)


async def awaited(example, prediction, trace=None):
    return 1.0


def yielding(example, prediction, trace=None):
    yield 1.0


async def yielding_later(example, prediction, trace=None):
    yield 1.0


class Yielding:
    def __call__(self, example, prediction, trace=None):
        yield 1.0


@pytest.mark.parametrize("metric", [awaited, yielding, yielding_later, Yielding(), functools.partial(awaited)])
def test_a_metric_that_gives_its_number_later_is_refused(metric, tmp_path):
    assert "`metric`" in str(refused(tmp_path / "run", metric=metric))


def test_nothing_left_to_train_is_refused_under_mixed_as_well(tmp_path):
    error = refused(tmp_path / "run", mixed=True, frozen=["doubler", "writer.predict"])
    assert "frozen" in str(error)


class Named(Doubling):
    """Takes two inputs, of which one may be left out."""

    def forward(self, number, unit=""):
        return super().forward(number)


class Filled(Doubling):
    """A decorator brings what no example has."""

    def with_unit(forward):  # noqa: N805
        @functools.wraps(forward)
        def filled(self, **inputs):
            return forward(self, unit="m", **inputs)

        return filled

    @with_unit
    def forward(self, number, unit):
        return super().forward(number)


@pytest.mark.parametrize("which", ["trainset", "valset"])
@pytest.mark.parametrize("inputs", [{"n": 1}, {"number": 1, "text": "a"}, {"unit": "m"}])
def test_inputs_that_the_program_does_not_take_are_refused(inputs, which, tmp_path):
    program = Named()
    program.set_lm(ToyLM(skill=skill))
    wrong = dspy.Example(**inputs, answer="a").with_inputs(*inputs)
    data = {"trainset": examples(), "valset": examples()} | {which: [*examples(range(2)), wrong]}
    with pytest.raises(DatasetError, match=rf"{which}\[2\].*forward\(number, unit=''\)"):
        optimizer(tmp_path / "run").compile(program, **data)
    assert program.doubler.lm.calls == 0


@pytest.mark.parametrize("kind", [Named, Filled])
def test_inputs_with_defaults_or_from_a_decorator_are_taken(kind, tmp_path):
    program = kind()
    program.set_lm(ToyLM(skill=skill))
    made = optimizer(tmp_path / "run", iterations=1, collect=Collect(samples=1), augmenter=None)
    assert made.compile(program, trainset=examples(range(2)), valset=examples(range(2)))


@pytest.mark.parametrize("teacher", ["gpt-4", Doubling, [Doubling()] * 2 + [None], dspy.Predict("a -> b"), Doubling()])
def test_a_teacher_that_cannot_teach_is_refused(teacher, tmp_path):
    program = student()
    with pytest.raises(UnpreparedProgramError, match="teacher"):
        optimizer(tmp_path / "run").compile(program, trainset=examples(), valset=examples(), teacher=teacher)
    assert program.doubler.lm.calls == 0


@pytest.mark.parametrize("valset", [[], "text", 3, [None], {"a": 1}])
def test_a_valset_that_cannot_be_used_is_refused(valset, tmp_path):
    with pytest.raises(DatasetError, match="valset"):
        optimizer(tmp_path / "run").compile(student(), trainset=examples(), valset=valset)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((lambda value=value: LoraOptions(rank=value), "rank") for value in ("a", 0, 1.5, None, True)),
        *((lambda value=value: LoraOptions(learning_rate=value), "learning_rate") for value in (0, "1", math.nan)),
        *((lambda value=value: LoraOptions(dropout=value), "dropout") for value in (1, -0.1, None)),
        (lambda: LoraOptions(seed=-1), "seed"),
        (lambda: LocalLM(5), "model"),
        (lambda: LocalLM(temperature="hot"), "temperature"),
        (lambda: LocalLM(max_tokens=0), "max_tokens"),
        (lambda: LocalLM(lora=LoraOptions), "lora"),
        (lambda: LocalLM(device="tpu"), "device"),
        (lambda: LocalLM(cache=None), "cache"),
    ],
)
def test_what_works_in_its_constructor_checks_there(make, name):
    with pytest.raises(SettingsError, match=f"`{name}`"):
        make()


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (MajorityVote("3"), "votes"),
        (MajorityVote(3, method=PromptedTeam), "method"),
        (MajorityVote(3, temperature=0), "temperature"),
        (BootstrapFinetune(None, "x"), "metric"),
        (BootstrapFinetune(exact, None), "run_dir"),
        (BootstrapFinetune(exact, "x", trainer=ProviderTrainer), "trainer"),
        (GEPA(exact, "many"), "max_metric_calls"),
        (GEPA(exact, 99, reflection_lm="gpt"), "reflection_lm"),
        (MIPROv2(exact, 99, max_demos=-1), "max_demos"),
    ],
)
def test_other_methods_check_theirs_in_compile(method, name):
    program = student()
    with pytest.raises(SettingsError, match=f"`{name}`"):
        method.compile(program, trainset=examples(), valset=examples())
    assert program.doubler.lm.calls == 0
