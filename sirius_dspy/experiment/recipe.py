"""A recipe: all settings of an experiment as frozen values, in code or in a TOML file.

Tables of the file correspond to classes of this module, and keys to their fields. An unknown key is an error that lists
the known ones.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sirius_dspy.baselines import Limits
from sirius_dspy.credentials import is_secret_name
from sirius_dspy.credit.credit import Credit
from sirius_dspy.experiment.errors import ExperimentError

FOLDER = Path("recipes")
"""Folder in the working directory in which recipes are found by name."""

_STRICT = ConfigDict(extra="forbid", strict=True)

Demonstrations = Mapping[str, Sequence[Mapping[str, Any]]]
"""Predictor name to demonstrations; each demonstration is a table of its fields."""


@dataclass(frozen=True)
class TaskTable:
    """The task to solve."""

    path: str = ""
    """Import path of a module, or of an object in it (`package.module:name`), with `build`, `examples` and `metric`."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `build`."""
    examples: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `examples`, on top of `split`, `size` and `seed`."""
    data: Sequence[str] = ()
    """Arguments of `examples` that accept a local file instead of the hub; `--data PATH` sets the first one."""
    parse: str = ""
    """Import path of a function that parses an answer: `parse(text)` or `parse(example, text)`, which returns `None`
    if it
    cannot. Without it, only runs that raised count as unparsed."""
    report: str = ""
    """Import path of a function that summarizes the scored runs of a test: `report(trajectories)`, such as
    `programs.actor_critic:report`, or `report(trajectories, examples)`, such as `metrics.yes_no_maybe:report`."""
    shown: int | None = None
    """Number of demonstrations per agent that prompts show; by default all. A warm start trains on all of them."""
    measures: Sequence[str] = ()
    """Attributes of the result of `report` to show beside the accuracy."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class SizesTable:
    """Number of examples of each split; `None` takes the default of the task."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class SingleTable:
    """The single agent, defined by keyword arguments of the task's `build` or by a signature."""

    build: Mapping[str, Any] = field(default_factory=dict)
    signature: str = ""
    """A DSPy signature such as `question -> answer`."""
    instructions: str = ""
    """Instructions of the signature."""
    demonstrations: Sequence[Mapping[str, Any]] = ()
    """Demonstrations as tables of fields; by default, those of the task."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of tokens of its replies; by default, that of `lm`."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class VariantTable:
    """A method with another variant of the program, under its own name.

    `sirius.agents` and `sirius.frozen` also apply to it, so its predictors must have these names.
    """

    build: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the task's `build`, in addition to the recipe's."""
    method: str = "prompted team"
    """One of the methods for a team."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class SiriusTable:
    """Settings of `SiriuS`, with the same meanings and defaults.

    `threshold`, `max_rows`, `max_per_example` and `cold_start` also apply to the other methods that train.
    """

    iterations: int = 2
    samples: int = 4
    until_solved: bool = False
    temperature: float = 1.0
    threshold: float = 1.0
    max_repairs: int | None = None
    max_rows: int | None = None
    max_per_example: int = 4
    curator: str = ""
    """Import path of a class that accepts `max_per_example` and `max_rows`; `Curator` by default."""
    agents: Mapping[str, Sequence[str]] = field(default_factory=dict)
    frozen: Sequence[str] = ()
    cumulative: bool = False
    train_from: Literal["base", "current"] = "base"
    promote: bool = True
    cold_start: bool = False
    """Whether an agent's prompts have demonstrations while collecting, until it is trained."""
    warm_start: bool = False
    """Whether the agents of SiriuS and STaR are fine-tuned on the demonstrations first, instead of reading them."""
    shares: Sequence[float] = ()
    """Share of the examples that each iteration of SiriuS and STaR runs, the easiest first; see `EasyToHard`."""
    difficulty: str = ""
    """Import path of a function that says how hard an example is; see `EasyToHard`."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class RepairTable:
    """How SiriuS repairs: the settings of `CriticAugmenter`, with the same meanings and defaults, or a ladder."""

    enabled: bool = True
    """Whether SiriuS repairs failed runs."""
    critic: str = "own"
    """`own` is the current LM of the repaired agent, `base` its initial LM; anything else is the id of an LM."""
    rephraser: str = "own"
    """LM that rewrites answers; see `critic`."""
    max_feedback: int = 1
    max_regenerations: int = 1
    temperature: float = 1.0
    rephrase: bool = True
    show_earlier: bool = True
    demonstrations: bool = False
    """Whether to use the task's `repair_demonstrations()`."""
    answering: Sequence[str] = ()
    """Predictors whose task is to state the answer; see `LeakGuard`."""
    ladder: bool = False
    """Whether to repair with a `LadderAugmenter`. There is then also a method `SiriuS as published`, with the critic,
    demonstrations in prompts instead of a warm start, and all examples in every iteration."""
    drop_reliant: float = 0.1
    """See `LadderAugmenter`."""
    must_know: bool = True
    """See `LabelAugmenter`, the last rung of the ladder."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class CreditTable(Credit):
    """Settings of `Credit`. With this table SiriuS values steps by replay."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class StarTable:
    """Settings of STaR, with the same meanings as for SiriuS."""

    iterations: int = 2
    samples: int = 1
    temperature: float = 1.0
    cumulative: bool = False
    promote: bool = False

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class PromptTable:
    """Settings of GEPA and MIPROv2."""

    max_metric_calls: int | None = None
    """Maximum number of runs of the program. By default, they use four fifths of the budget of LM calls, because both
    methods also call the LM for instructions."""
    num_candidates: int = 6
    """Of MIPROv2."""
    max_demos: int = 4
    """Of MIPROv2."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class VoteTable:
    """Settings of the majority vote."""

    votes: int = 5
    temperature: float = 0.7
    method: str = "prompted team"
    """Method that creates the program: one of the methods for a team."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class BudgetTable:
    """The budget of each method until its program is ready, without the test; see `sirius_dspy.baselines.Limits`."""

    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    __pydantic_config__ = _STRICT

    @property
    def limits(self) -> Limits:
        """Return the limits for a meter."""
        return Limits(self.calls, self.tokens, self.seconds)


@dataclass(frozen=True)
class PriceTable:
    """US dollars per million tokens of the recipe's LM. Without prices, and with another LM, costs are unknown."""

    prompt: float
    completion: float

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class PaperTable:
    """Numbers of a publication, which are only printed beside ours."""

    lm: str
    source: str
    """Table and version of the publication."""
    results: Mapping[str, str] = field(default_factory=dict)
    """Method to its number as it is printed there."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class CrossplayTable:
    """A game after training in which the programs of all methods play against each other, for each seed."""

    title: str
    path: str
    """Import path of a function such as `programs.negotiation.tournament:tournament`."""
    read: str
    """Import path of a function that creates the game from a table, such as `programs.negotiation:game_from`."""
    game: Mapping[str, Any]
    games: int = 25
    """Number of games of each ordered pair; the default is the paper's."""
    temperature: float | None = None
    """Temperature of all LMs; by default, their own. At 0, all games of two agents are the same game."""
    bots: Sequence[str] = ()
    """Further players by their names in the game."""
    paper: str = ""
    """The paper's results as Markdown."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Recipe:
    """One experiment."""

    title: str = ""
    notes: str = ""
    """Notes for the reader, such as differences from the paper."""
    methods: Sequence[str] = ()
    """The methods, in the order of the work and of the tables."""
    baseline: str = "prompted team"
    """The method with which all others are compared."""
    seeds: Sequence[int] = (0,)
    data_seed: int = 0
    """Seed of the data. All seeds share one test split, so that methods can be compared item by item."""
    resample_training: bool = False
    """Whether to draw training and validation examples with each seed instead of `data_seed`, so that intervals include
    their choice. This requires a task whose test split is disjoint from all other splits for any seed."""
    adapter: Literal["chat", "plain"] = "chat"
    """DSPy's `ChatAdapter`, or `PlainAdapter` with short prompts for small LMs."""
    num_threads: int = 8
    """Number of parallel runs."""
    lm: Mapping[str, Any] = field(default_factory=dict)
    """`model` and further arguments of the LM. Keys belong in the environment."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of fine-tuning: `LoraOptions` for a local LM, otherwise arguments of the provider, e.g. `n_epochs`."""
    task: TaskTable = field(default_factory=TaskTable)
    sizes: SizesTable = field(default_factory=SizesTable)
    demonstrations: Demonstrations = field(default_factory=dict)
    """By default, the task's `demonstrations()`, if it has them."""
    single: SingleTable | None = None
    reasoning: SingleTable | None = None
    """A second single agent, which reasons before it answers."""
    variants: Mapping[str, VariantTable] = field(default_factory=dict)
    sirius: SiriusTable = field(default_factory=SiriusTable)
    repair: RepairTable = field(default_factory=RepairTable)
    credit: CreditTable | None = None
    star: StarTable = field(default_factory=StarTable)
    prompts: PromptTable = field(default_factory=PromptTable)
    vote: VoteTable = field(default_factory=VoteTable)
    budget: BudgetTable = field(default_factory=BudgetTable)
    price: PriceTable | None = None
    crossplay: Sequence[CrossplayTable] = ()
    paper: Sequence[PaperTable] = ()

    __pydantic_config__ = _STRICT

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Read a TOML file.

        Raises:
            ExperimentError: The file does not exist, is not TOML, or has unknown keys or values of wrong types.
        """
        file = _find(path)
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ExperimentError(f"{str(file)!r} is not TOML: {error}. Correct the file.") from error
        return cls.from_table(table, str(file))

    @classmethod
    def from_table(cls, table: Mapping[str, Any], name: str = "the recipe") -> Recipe:
        """Create a recipe from a parsed file.

        Args:
            table: The result of a TOML parser.
            name: Name of the recipe, for messages.

        Raises:
            ExperimentError: It has unknown keys or values of wrong types.
        """
        try:
            recipe = TypeAdapter(cls).validate_json(
                json.dumps(dict(table), default=str)
            )  # TOML has dates, but no field does
        except ValidationError as error:
            raise ExperimentError(_explain(name, error)) from error
        if secret := next((key for key in (*recipe.lm, *recipe.training) if is_secret_name(key)), None):
            raise ExperimentError(f"{name!r} holds {secret!r}. Keep keys in the environment, e.g. OPENAI_API_KEY.")
        return recipe

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that identify an experiment as plain values, without methods, seeds and printed texts."""
        omitted = ("title", "notes", "methods", "baseline", "seeds", "num_threads", "lm", "price", "paper", "crossplay")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in omitted}


def _find(path: str | Path) -> Path:
    """Find a recipe by its path or name."""
    given = Path(path)
    if given.is_file():
        return given
    named = FOLDER / f"{given}.toml"
    if given.suffix != ".toml" and named.is_file():
        return named
    if not FOLDER.is_dir():
        raise ExperimentError(
            f"There is no recipe {str(path)!r}: the working directory has no folder {str(FOLDER)!r}. Recipes come with "
            "a clone of the repository; run the command there, or pass the path of a TOML file."
        )
    names = sorted(file.stem for file in FOLDER.glob("*.toml"))
    raise ExperimentError(
        f"There is no recipe {str(path)!r}; {str(FOLDER)!r} in the working directory has {names}. Pass one of them, or "
        "the path of a TOML file."
    )


def _explain(name: str, error: ValidationError) -> str:
    """Explain the first error, and list the known settings."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    where = ".".join(place)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _class_at(place[:-1])
        advice = f" The known settings are {[item.name for item in dataclasses.fields(owner)]}." if owner else ""
        return f"Recipe {name!r} has an unknown setting {where!r}.{advice}"
    return f"Recipe {name!r}: {where!r} is {first.get('input')!r}. {first['msg']}."


def _class_at(place: Sequence[str]) -> type[Any] | None:
    """Return the class of the table at a place in a recipe."""
    tables: Mapping[str, type[Any]] = {
        "task": TaskTable,
        "sizes": SizesTable,
        "single": SingleTable,
        "reasoning": SingleTable,
        "variants": VariantTable,
        "sirius": SiriusTable,
        "repair": RepairTable,
        "star": StarTable,
        "prompts": PromptTable,
        "vote": VoteTable,
        "budget": BudgetTable,
        "price": PriceTable,
        "crossplay": CrossplayTable,
        "paper": PaperTable,
    }
    return tables.get(place[0]) if place else Recipe
