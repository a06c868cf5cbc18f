"""A setting that cannot be meant is a typed error that names it, before the first LM call."""

from __future__ import annotations

import functools
import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from programs.negotiation.curator import GameCurator
from sirius_dspy import (
    Budget,
    Collect,
    Credit,
    CriticAugmenter,
    CriticTraining,
    Curator,
    EasyToHard,
    ExperienceLibrary,
    HintAugmenter,
    LabelAugmenter,
    LadderAugmenter,
    LeakGuard,
    LocalLM,
    LoraOptions,
    PassRateWeights,
    Patience,
    ProcessExecutor,
    ProviderTrainer,
    RepairDemos,
    ResampleAugmenter,
    SharedWeights,
    SiriuS,
    Tracker,
    ValsetGate,
)
from sirius_dspy.baselines import GEPA, BootstrapFinetune, MajorityVote, MIPROv2, PromptedTeam, Rationalizer
from sirius_dspy.errors import DatasetError, SettingsError, SiriuSError, UnpreparedProgramError
from sirius_dspy.testing import ToyLM
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
NO_LM = ["gpt", 1, ToyLM, object()]
NO_DEMOS = [{"doubler": None}, {"doubler": [1]}, {"doubler": {"number": 1}}, [dspy.Example()], "doubler", 1]
NO_SECONDS = [0, -1.0, "600", True, math.nan]

WRONG: dict[str, list[Any]] = {
    "metric": [None, "f1", 1, exact(dspy.Example(answer=1), dspy.Example(answer=1)), Doubling, [exact]],
    "threshold": NO_NUMBER,
    "iterations": [None, 0, *NO_WHOLE],
    "collect": [None, Collect, 4, {"samples": 4}, Patience()],
    "credit": [Credit, 4, True, "replay", {"alternatives": 4}, Collect()],
    "augmenter": [CriticAugmenter, "critic", 1, ToyLM("x"), exact, SimpleNamespace(repair=exact)],
    "curator": [None, Curator, GameCurator, 7, "all", lambda: Curator()],
    "trainer": [None, ProviderTrainer, "lora", {"n_epochs": 1}, ToyLM("x"), SimpleNamespace(train=exact)],
    "gate": [ValsetGate, True, False, 0.1, "valset", exact, SimpleNamespace(choose=exact)],
    "agents": [{"team": []}, {"team": "doubler"}, {"team": None}, ["doubler"], "doubler", {1: ["doubler"]}, 3],
    "frozen": NO_NAMES,
    "budget": [Budget, 100, "100 calls", {"calls": 100}, Patience()],
    "patience": [None, Patience, 4, {"retries": 4}, Budget()],
    "tracker": [Tracker, "mlflow", [Tracker()], 1],
    "library": ["runs.sqlite", Path("runs.sqlite"), ExperienceLibrary, 1],
    "run_dir": [1, True, [], b"runs", "", Path],
    "num_threads": [0, *NO_WHOLE],
    "executor": [ProcessExecutor, 2, "ray", True, Patience()],
    "seed": [None, *NO_WHOLE],
    "accept_changes": [*NO_NAMES, ["nothing"], ["metrics.code"]],
}

WRONG_IN_PARTS: dict[type, tuple[str, dict[str, list[Any]]]] = {
    Collect: (
        "collect",
        {
            "samples": [None, 0, *NO_WHOLE],
            "temperature": [-0.1, *NO_NUMBER],
            "until_solved": NO_FLAG,
            "demos": NO_DEMOS,
            "warm_start": [*NO_FLAG, True],  # without demonstrations
            "keep_demos": NO_FLAG,
            "schedule": [EasyToHard, "easy", 3, exact, SimpleNamespace(choose=exact), {"shares": [1.0]}],
        },
    ),
    Patience: (
        "patience",
        {
            "retries": [None, *NO_WHOLE],
            "call_timeout_s": NO_SECONDS,
            "run_timeout_s": NO_SECONDS,
            "outage_s": [None, -1, "long", float("nan")],
            "max_unfinished": [None, *NO_WHOLE],
            "first_wait_s": [-0.1, *NO_NUMBER],
        },
    ),
    Budget: (
        "budget",
        {
            "calls": [0, *NO_WHOLE],
            "tokens": [0, *NO_WHOLE],
            "usd": [0, -1, *NO_NUMBER[1:]],
            "seconds": NO_SECONDS,
            "stages": [None, 1, Budget(), {"repair": 500}, {"repair": None}, {1: Budget()}, {"train": Budget(calls=1)}],
            "prices": [None, 1, {"x": 0.1}, {"x": (0.1,)}, {"x": (0.1, -0.1)}, {"x": ("1", "2")}, {1: (0.1, 0.1)}],
        },
    ),
    Credit: (
        "credit",
        {
            "alternatives": [None, 0, *NO_WHOLE],
            "temperature": [0, -0.1, *NO_NUMBER],
            "continuations": [None, 0, *NO_WHOLE],
            "max_runs": [0, *NO_WHOLE],
            "drop": NO_FLAG,
            "weigh": NO_FLAG,
            "order": NO_FLAG,
            "threshold": [-1.1, 1, *NO_NUMBER],
            "evidence": [None, 0, *NO_WHOLE],
        },
    ),
    ValsetGate: ("gate", {"min_gain": [-0.1, *NO_NUMBER]}),
    Curator: (
        "curator",
        {
            "max_per_example": [None, 0, *NO_WHOLE],
            "max_rows": [0, *NO_WHOLE],
            "cumulative": NO_FLAG,
            "max_per_run": [0, *NO_WHOLE],
            "max_per_agent": [0, *NO_WHOLE],
            "weights": [PassRateWeights, 0.5, "pass rate", exact],
        },
    ),
    CriticAugmenter: (
        "augmenter",
        {
            "critic": NO_LM,
            "training": [CriticTraining, True, 20, {"min_rows": 20}],
            "rephraser": NO_LM,
            "max_feedback": [None, *NO_WHOLE],
            "max_regenerations": [None, 0, *NO_WHOLE],
            "temperature": [-0.1, *NO_NUMBER],
            "rephrase": NO_FLAG,
            "show_earlier": NO_FLAG,
            "demos": [{"critique": []}, [dspy.Example()], RepairDemos, 1],
            "guard": [LeakGuard, "no", 1, exact],
            "max_repairs": NO_WHOLE,
        },
    ),
    LadderAugmenter: (
        "augmenter",
        {
            "rungs": [(), "label", [LadderAugmenter], [exact], 1],
            "drop_reliant": [None, -0.1, 1, *NO_NUMBER],
            "measure": NO_FLAG,
            "confirmations": [None, -1, *NO_WHOLE],
            "max_repairs": NO_WHOLE,
        },
    ),
    ResampleAugmenter: (
        "augmenter",
        {"samples": [None, 0, *NO_WHOLE], "num_demos": [None, *NO_WHOLE], "max_repairs": NO_WHOLE},
    ),
    HintAugmenter: (
        "augmenter",
        {
            "shares": [None, (), 0.5, [1.1], [-0.1], ["half"]],
            "temperature": [-0.1, *NO_NUMBER],
            "guard": [LeakGuard, "no", 1, exact],
            "max_repairs": NO_WHOLE,
        },
    ),
    LabelAugmenter: (
        "augmenter",
        {"guard": [LeakGuard, "no", 1, exact], "must_know": NO_FLAG, "max_repairs": NO_WHOLE},
    ),
    ProviderTrainer: (
        "trainer",
        {
            "train_kwargs": [3, "n_epochs", [("n_epochs", 1)], {1: 2}],
            "train_from": ["best", None, 1, True, ["base"]],
        },
    ),
    SharedWeights: ("agents", {"name": [None, "", 1, [], ("mixed",), object()]}),
}
"""Class of a part to the setting of `SiriuS` that takes it, and the part's own settings."""


@pytest.mark.parametrize("name", WRONG)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_setting_of_the_wrong_kind_is_refused_by_name(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = data.draw(st.sampled_from(WRONG[name]))
    error = refused(tmp_path / "run", **{name: value}) if name != "run_dir" else refused_folder(value)
    check_says(error, name, "SiriuS" if name != "accept_changes" else "")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        pytest.param(part, name, id=f"{part.__name__}.{name}")
        for part in WRONG_IN_PARTS
        for name in WRONG_IN_PARTS[part][1]
    ],
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_setting_of_a_part_of_the_wrong_kind_is_refused_by_name(part, name, data, tmp_path):
    setting, wrong = WRONG_IN_PARTS[part]
    value = data.draw(st.sampled_from(wrong[name]))
    check_says(refused(tmp_path / "run", **{setting: part(**{name: value})}), name, part.__name__)


def check_says(error: SiriuSError, name: str, owner: str) -> None:
    assert isinstance(error, SettingsError)
    assert isinstance(error, ValueError)
    assert f"`{name}`" in str(error)
    assert owner in str(error)
    assert "0x" not in str(error)


def refused_folder(value: Any) -> SiriuSError:
    with pytest.raises(SiriuSError) as caught:
        SiriuS(exact, run_dir=value).compile(student(), trainset=examples(), valset=examples())
    assert not list(Path().iterdir())
    return caught.value


def test_the_tables_have_every_setting():
    assert set(WRONG) == set(vars(optimizer(Path("x"))))
    for part, (setting, wrong) in WRONG_IN_PARTS.items():
        assert set(wrong) == set(inspect.signature(part).parameters), part
        assert setting in WRONG


def trained_critic(**settings: Any) -> CriticAugmenter:
    return CriticAugmenter(ToyLM("toy/critic"), training=CriticTraining(**settings))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"curator": Curator}, r"the class Curator.*Pass an object of the class: `Curator\(\.\.\.\)`"),
        ({"library": "runs.sqlite"}, r"ExperienceLibrary\('runs.sqlite'\)"),
        ({"tracker": [Tracker()]}, r"Trackers\(\["),
        ({"frozen": "judge"}, r"\['judge'\]"),
        ({"collect": 4}, r"`Collect\(samples=4\)`"),
        ({"gate": False}, r"`ValsetGate\(\)`, or None"),
        ({"collect": Collect(samples=2, temperature=0)}, "all 2 samples of an example would be the same"),
        (
            {"collect": Collect(demos={"doubler": [dspy.Example(question="q", doubled="2")]})},
            r"Collect.demos\['doubler'\]\[0\].*input",
        ),
        (
            {"collect": Collect(demos={"doubler": [dspy.Example(number=1)]})},
            r"Collect.demos\['doubler'\]\[0\] has none of the output",
        ),
        ({"credit": Credit(alternatives=1)}, "no step could ever be judged"),
        (
            {"budget": Budget(stages={"train": Budget(calls=1)})},
            r"names \['train'\].*\['collect', 'credit', 'repair'\]",
        ),
        ({"budget": Budget(stages={"repair": Budget(calls=0)})}, "`calls` of Budget is 0"),
        ({"budget": Budget(stages={"repair": Budget(stages={"repair": Budget()})})}, "it takes limits only"),
        ({"budget": Budget(usd=1.0)}, r"nobody knows the price of \['toy/base'\]"),
        ({"budget": Budget(stages={"repair": Budget(usd=1.0)})}, r"nobody knows the price of \['toy/base'\]"),
        ({"curator": Curator(max_per_example=0)}, "`max_per_example` of Curator is 0"),
        ({"curator": Curator(max_rows="all")}, "`max_rows` of Curator is 'all'"),
        ({"curator": GameCurator(max_games=None)}, "`max_games` of GameCurator is None"),
        ({"trainer": ProviderTrainer(3)}, "`train_kwargs` of ProviderTrainer is 3"),
        ({"trainer": ProviderTrainer({1: 2})}, "`train_kwargs` of ProviderTrainer"),
        ({"augmenter": CriticAugmenter("gpt")}, "`critic` of CriticAugmenter is 'gpt'"),
        ({"augmenter": trained_critic(min_rows=0)}, "`min_rows` of CriticTraining is 0"),
        ({"augmenter": trained_critic(min_rows=None)}, "`min_rows` of CriticTraining is None"),
        ({"augmenter": trained_critic(held_out=1)}, "`held_out` of CriticTraining is 1"),
        ({"augmenter": trained_critic(held_out=math.nan)}, "`held_out` of CriticTraining"),
        ({"augmenter": trained_critic(max_rows=0.5)}, "`max_rows` of CriticTraining is 0.5"),
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


def test_nothing_left_to_train_is_refused_under_shared_weights_as_well(tmp_path):
    error = refused(tmp_path / "run", agents=SharedWeights(), frozen=["doubler", "writer.predict"])
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
        (lambda: LocalLM(revision=5), "revision"),
        (lambda: LoraOptions(qlora=4), "qlora"),
        (lambda: LoraOptions(gradient_checkpointing="yes"), "gradient_checkpointing"),
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
        (GEPA(exact, 99, demos=[]), "demos"),  # type: ignore[arg-type]
        (MIPROv2(exact, 99, max_demos=-1), "max_demos"),
    ],
)
def test_other_methods_check_theirs_in_compile(method, name):
    program = student()
    with pytest.raises(SettingsError, match=f"`{name}`"):
        method.compile(program, trainset=examples(), valset=examples())
    assert program.doubler.lm.calls == 0
