"""A recipe: everything that makes an experiment what it is, as frozen values, in code or in a TOML file.

Tables of the file are the classes of this module, keys are their fields; a key that no class has is an error that names
those there are.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sirius_dspy.baselines import Limits
from sirius_dspy.credentials import is_secret_name
from sirius_dspy.experiment.errors import ExperimentError

FOLDER = Path("recipes")
"""Where recipes are looked for by name, in the working directory."""

_STRICT = ConfigDict(extra="forbid", strict=True)

Demonstrations = Mapping[str, Sequence[Mapping[str, Any]]]
"""Predictor name to demonstrations, each a table of its fields."""


@dataclass(frozen=True)
class TaskTable:
    """What is to be solved."""

    path: str = ""
    """Import path of a module, or of an object in it (`package.module:name`), with `build`, `examples` and `metric`."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `build`."""
    examples: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `examples`, on top of `split`, `size` and `seed`."""
    data: Sequence[str] = ()
    """Arguments of `examples` that take a local file instead of the hub; `--data PATH` fills the first one."""
    parse: str = ""
    """Import path of what reads an answer: `parse(text)` or `parse(example, text)`, giving `None` for one that cannot
    be read. Without it, only runs that raised count as unparsed."""
    report: str = ""
    """Import path of a function that counts the scored runs of a test, such as `programs.actor_critic:report`."""
    measures: Sequence[str] = ()
    """Attributes of what `report` returns, shown beside the accuracy."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class SizesTable:
    """Number of examples of each split; `None` takes what the task gives by itself."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class SingleTable:
    """The single agent: by keyword arguments of the task's `build`, or by a signature."""

    build: Mapping[str, Any] = field(default_factory=dict)
    signature: str = ""
    """A DSPy signature such as `question -> answer`."""
    instructions: str = ""
    """Of the signature."""
    demonstrations: Sequence[Mapping[str, Any]] = ()
    """Tables of its fields; by default the task's own."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class VariantTable:
    """A method on the program built otherwise, under a name of its own.

    `sirius.agents` and `sirius.frozen` hold for it, too, so its predictors must have these names.
    """

    build: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the task's `build`, on top of the recipe's."""
    method: str = "prompted team"
    """One of the methods for a team."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class SiriusTable:
    """Settings of `SiriuS`, with its meanings and defaults.

    `threshold`, `max_rows`, `max_per_example` and `cold_start` hold for the other methods that train, too.
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
    """Import path of a class that takes `max_per_example` and `max_rows`; by default `Curator`."""
    agents: Mapping[str, Sequence[str]] = field(default_factory=dict)
    frozen: Sequence[str] = ()
    cumulative: bool = False
    train_from: Literal["base", "current"] = "base"
    promote: bool = True
    cold_start: bool = False
    """Show the demonstrations while collecting, as long as an agent has not learnt anything."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class RepairTable:
    """Settings of `CriticAugmenter`, with its meanings and defaults."""

    enabled: bool = True
    """Whether SiriuS repairs at all."""
    critic: str = "own"
    """`own` is the repaired agent's current LM, `base` the one that it started from; anything else is an LM's id."""
    rephraser: str = "own"
    """As for `critic`."""
    max_feedback: int = 1
    max_regenerations: int = 1
    temperature: float = 1.0
    rephrase: bool = True
    show_earlier: bool = True
    demonstrations: bool = False
    """Use the task's `repair_demonstrations()`."""
    answering: Sequence[str] = ()
    """Predictors whose own work brings the answer up; see `LeakGuard`."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class StarTable:
    """Settings of STaR, with the meanings that they have for SiriuS."""

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
    """Runs of the program at most; by default what four fifths of the budget of LM calls pay for, since both methods
    ask for instructions as well."""
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
    """What makes the program: one of the methods for a team."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class BudgetTable:
    """What each method may use until its program is ready, testing excluded; see `sirius_dspy.baselines.Limits`."""

    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    __pydantic_config__ = _STRICT

    @property
    def limits(self) -> Limits:
        """The same for a meter."""
        return Limits(self.calls, self.tokens, self.seconds)


@dataclass(frozen=True)
class PriceTable:
    """US dollars per million tokens of the recipe's own LM; without prices, and with another LM, costs are unknown."""

    prompt: float
    completion: float

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class PaperTable:
    """Numbers of a publication, printed beside ours and used for nothing else."""

    lm: str
    source: str
    """Which table, of which version."""
    results: Mapping[str, str] = field(default_factory=dict)
    """Method to what is printed there, as it is printed."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class CrossplayTable:
    """Everybody against everybody, after training: a game in which the programs of all methods meet, for each seed."""

    title: str
    path: str
    """Import path of a function as `programs.negotiation.tournament:tournament`."""
    read: str
    """Import path of what makes the function's game from a table, as `programs.negotiation:game_from`."""
    game: Mapping[str, Any]
    games: int = 25
    """Of each ordered pairing; the paper's number."""
    temperature: float | None = None
    """Of all LMs; by default their own. At 0, all games of two agents are one game."""
    bots: Sequence[str] = ()
    """Further players, by their names in the game."""
    paper: str = ""
    """What the paper has here, as Markdown."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class Recipe:
    """One experiment."""

    title: str = ""
    notes: str = ""
    """What a reader must know, such as where it departs from the paper."""
    methods: Sequence[str] = ()
    """Their order is that of the work and of the tables."""
    baseline: str = "prompted team"
    """The method that all others are compared with."""
    seeds: Sequence[int] = (0,)
    data_seed: int = 0
    """Of the data. All seeds share one test split, so that methods can be compared item by item."""
    resample_training: bool = False
    """Draw training and validation examples by each seed and not by `data_seed`, so that their choice counts as luck,
    too. Only for tasks whose test split stays out of all other splits whatever the seed."""
    adapter: Literal["chat", "plain"] = "chat"
    """DSPy's ChatAdapter, or the short prompts of `PlainAdapter` for small LMs."""
    num_threads: int = 8
    """Program runs at a time."""
    lm: Mapping[str, Any] = field(default_factory=dict)
    """`model` and further arguments of the LM. Keys belong into the environment."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What a fine-tuning job is told: `LoraOptions` for a local LM, else what the provider takes, e.g. `n_epochs`."""
    task: TaskTable = field(default_factory=TaskTable)
    sizes: SizesTable = field(default_factory=SizesTable)
    demonstrations: Demonstrations = field(default_factory=dict)
    """By default the task's own `demonstrations()`, where it has them."""
    single: SingleTable | None = None
    variants: Mapping[str, VariantTable] = field(default_factory=dict)
    sirius: SiriusTable = field(default_factory=SiriusTable)
    repair: RepairTable = field(default_factory=RepairTable)
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
            ExperimentError: There is no such file, it is not TOML, or it has unknown keys or values of wrong types.
        """
        file = _find(path)
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ExperimentError(f"{str(file)!r} is not TOML: {error}. Correct the file.") from error
        return cls.from_table(table, str(file))

    @classmethod
    def from_table(cls, table: Mapping[str, Any], name: str = "the recipe") -> Recipe:
        """The recipe that a parsed file describes.

        Args:
            table: What a TOML reader gives.
            name: Of the recipe, for messages.

        Raises:
            ExperimentError: It has unknown keys or values of wrong types.
        """
        try:
            recipe = TypeAdapter(cls).validate_json(
                json.dumps(dict(table), default=str)
            )  # TOML has dates, no field has
        except ValidationError as error:
            raise ExperimentError(_explain(name, error)) from error
        if secret := next((key for key in (*recipe.lm, *recipe.training) if is_secret_name(key)), None):
            raise ExperimentError(f"{name!r} holds {secret!r}. Keep keys in the environment, e.g. OPENAI_API_KEY.")
        return recipe

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two experiments the same, as plain values: not how many cells there are, nor what is printed."""
        omitted = ("title", "notes", "methods", "baseline", "seeds", "num_threads", "lm", "price", "paper", "crossplay")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in omitted}


def _find(path: str | Path) -> Path:
    """The file of a path, or of a recipe's name."""
    given = Path(path)
    if given.is_file():
        return given
    named = FOLDER / f"{given}.toml"
    if given.suffix != ".toml" and named.is_file():
        return named
    if not FOLDER.is_dir():
        raise ExperimentError(
            f"There is no recipe {str(path)!r}: the working directory has no folder {str(FOLDER)!r}. Recipes come with "
            "a clone of the repository; run the command there, or name the path of a TOML file."
        )
    names = sorted(file.stem for file in FOLDER.glob("*.toml"))
    raise ExperimentError(
        f"There is no recipe {str(path)!r}; {str(FOLDER)!r} in the working directory has {names}. Name one of them, or "
        "the path of a TOML file."
    )


def _explain(name: str, error: ValidationError) -> str:
    """The first thing that is wrong, and what there is instead."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    where = ".".join(place)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _class_at(place[:-1])
        advice = f" There are {[item.name for item in dataclasses.fields(owner)]}." if owner else ""
        return f"Recipe {name!r} has an unknown setting {where!r}.{advice}"
    return f"Recipe {name!r}: {where!r} is {first.get('input')!r}. {first['msg']}."


def _class_at(place: Sequence[str]) -> type[Any] | None:
    """The class of the table at a place in a recipe."""
    tables: Mapping[str, type[Any]] = {
        "task": TaskTable,
        "sizes": SizesTable,
        "single": SingleTable,
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
