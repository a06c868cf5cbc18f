"""The strict schema of the manifest; nothing else is allowed in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from sirius_dspy.checkpoint.files import read_json
from sirius_dspy.errors import CheckpointError
from sirius_dspy.optimizer.results import CompileResult

FORMAT = 2
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20

_RESERVED = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")
_SEGMENT = re.compile(r"[^\x00-\x1f\x7f\\/:*?\"<>|%]{1,200}")


def _safe_path(name: str) -> str:
    """Accept a relative file name that means the same on every system."""
    parts = name.split("/")
    if len(name.encode("utf-8", "surrogatepass")) > 1000 or not all(_is_safe(part) for part in parts):
        raise ValueError("is not a plain relative path")
    return name


def _is_safe(part: str) -> bool:
    is_dotted = part in (".", "..") or part.endswith((".", " ")) or part.startswith(" ")
    return bool(_SEGMENT.fullmatch(part)) and part.isprintable() and not is_dotted and not _RESERVED.fullmatch(part)


def _model_id(name: str) -> str:
    """Accept the id of an LM without an address in it: some providers of LiteLLM would connect to that."""
    if not name.isprintable() or re.search(r"\s|\\|\.\.|://|^/|https?:", name, re.IGNORECASE):
        raise ValueError("is not the id of an LM")
    return name


Model = TypeVar("Model", bound=BaseModel)

Name = Annotated[str, Field(min_length=1, max_length=1000)]
ClassPath = Annotated[str, Field(max_length=500, pattern=r"^[\w.]+[.:][\w.<>]+$")]
ModelId = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_model_id)]
SafePath = Annotated[str, Field(max_length=1000), AfterValidator(_safe_path)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
Number = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | float
Word = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z_]+$")]


class Strict(BaseModel):
    """Base of the schemas: allows no unknown keys and no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class LMState(Strict):
    """The stored state of an LM: what determines its answers, but not where requests are sent."""

    class_path: ClassPath = Field(alias="_dspy_lm_class")
    model: ModelId
    model_type: Literal["chat", "text", "responses"] | None = None
    cache: bool | None = None
    num_retries: Annotated[int, Field(ge=0, le=1000)] | None = None
    temperature: Number | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    top_p: Number | None = None
    top_k: Count | None = None
    min_p: Number | None = None
    n: Count | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    rollout_id: Seed | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    logprobs: bool | Count | None = None
    top_logprobs: Count | None = None
    timeout: Number | None = None
    reasoning_effort: Word | None = None
    verbosity: Word | None = None
    use_developer_role: bool | None = None
    parallel_tool_calls: bool | None = None
    finetuning_model: ModelId | None = None
    train_kwargs: dict[Word, bool | Number] | None = None
    device: Literal["cuda", "mps", "cpu", "openvino"] | None = None
    """An argument of `LocalLM`."""
    lora: dict[Word, bool | Number] | None = None
    """An argument of `LocalLM`."""
    answers: dict[Literal["mapping"], dict[str, str]] | dict[Literal["sequence"], list[str]] | None = None
    """An argument of `ScriptedLM`."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments with which to build the LM."""
        return self.model_dump(exclude={"class_path"}, exclude_unset=True)


class AdapterState(Strict):
    """The adapter that the agents were trained with."""

    class_path: ClassPath = Field(alias="class")
    arguments: dict[Name, bool | None] = {}
    withheld: list[Name] = []
    """Arguments that cannot be stored. If there are any, the user must create the adapter."""


class AgentEntry(Strict):
    """One agent: its predictors, their LM, and where its weights are."""

    predictors: Annotated[list[Name], Field(min_length=1)]
    lm: LMState
    settings: dict[Name, LMState] = {}
    """Predictor to its LM if it differs from the agent's: the same weights may be used with several settings."""
    withheld: list[Name] = []
    """Arguments of the LM that are never stored: endpoints, headers, keys. If there are any, the user must pass the
    LM."""
    weights: SafePath | None = None
    """Folder of the weights; `None` if the LM finds them by its id."""
    sources: SafePath | None = None
    """File that lists the runs that the agent was trained on."""

    @property
    def folder(self) -> str | None:
        """The folder of the agent's files."""
        return self.weights or (self.sources and self.sources.rpartition("/")[0])

    @model_validator(mode="after")
    def _check_places(self) -> AgentEntry:
        folder = self.folder
        if folder is not None and (folder.count("/") != 1 or not folder.startswith("agents/")):
            raise ValueError("its files are not in a folder of `agents/`")
        if self.sources is not None and self.sources != f"{folder}/sources.jsonl":
            raise ValueError("its sources are not beside its weights")
        if unknown := sorted(set(self.settings) - set(self.predictors)):
            raise ValueError(f"it has settings of {unknown}, which are not its predictors")
        return self


def _read_results(plain: Any) -> CompileResult | None:
    return None if plain is None else CompileResult.from_dict(plain)


Results = Annotated[
    InstanceOf[CompileResult] | None,
    BeforeValidator(_read_results),
    PlainSerializer(lambda results: None if results is None else results.to_dict()),
]
"""Results of a compile as JSON, checked by their own schema."""


class Manifest(Strict):
    """Everything in a checkpoint except the content of its files."""

    format: Literal[2]
    program: ClassPath
    """Class of the program, for information only: it is never imported."""
    fingerprint: Name
    inputs: dict[Name, Name] | None
    adapter: AdapterState
    agents: Annotated[dict[Name, AgentEntry], Field(min_length=1)]
    results: Results
    """`detailed_results` of the compiled program, without paths of the machine that wrote it. `None` if the program was
    not compiled."""
    state: SafePath | None
    """File of the program's state; `None` in a checkpoint of one agent."""
    files: Annotated[dict[SafePath, Digest], Field(max_length=10_000)]

    @model_validator(mode="after")
    def _check_files(self) -> Manifest:
        folded = {name.casefold() for name in self.files}
        if len(folded) < len(self.files):
            raise ValueError("two files differ in upper and lower case only")
        if self.state is not None and (self.state not in self.files or "/" in self.state):
            raise ValueError("the program's state is not one of the files")
        folders = [entry.folder for entry in self.agents.values() if entry.folder]
        owned = {name for name in self.files if any(name.startswith(f"{folder}/") for folder in folders)}
        if strangers := sorted(set(self.files) - owned - {self.state}):
            raise ValueError(f"the file {strangers[0]!r} belongs to no agent")
        if empty := [folder for folder in folders if not any(name.startswith(f"{folder}/") for name in self.files)]:
            raise ValueError(f"the folder {empty[0]!r} has no files")
        return self

    @model_validator(mode="after")
    def _check_agents(self) -> Manifest:
        names = [name for entry in self.agents.values() for name in entry.predictors]
        if len(set(names)) < len(names):
            raise ValueError("a predictor is in two agents")
        return self

    @model_validator(mode="after")
    def _check_results(self) -> Manifest:
        if self.results is not None and (place := self.results.run_dir or self.results.library):
            raise ValueError(f"the results name the place {place[:100]!r}, which is never loaded from a file")
        return self


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the checkpoint in a folder.

    Raises:
        CheckpointError: The manifest is missing, or was not written by `save`.
    """
    try:
        plain = read_json(path / MANIFEST, MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{str(path)!r} is not a checkpoint: it has no {MANIFEST}. Pass the folder that `sirius_dspy.save` wrote."
        ) from error
    if not isinstance(plain, dict):
        raise CheckpointError(
            f"The {MANIFEST} of the checkpoint {str(path)!r} is not a JSON object. Save the program again."
        )
    if type(plain.get("format")) is not int or plain["format"] != FORMAT:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} has format {repr(plain.get('format'))[:40]}, this version reads {FORMAT}. "
            "Install the version of sirius-dspy that wrote it, or save the program again with this one."
        )
    return check_manifest(plain, str(path))


def check_manifest(plain: dict[str, Any], where: str) -> Manifest:
    """Validate a manifest.

    Raises:
        CheckpointError: It does not match the schema.
    """
    return validate(Manifest, plain, f"The {MANIFEST} of the checkpoint {where!r}")


def validate(model: type[Model], plain: Any, what: str) -> Model:
    """Validate a value against a schema.

    Raises:
        CheckpointError: The value does not match; the message names the first place that does not fit.
    """
    try:
        return model.model_validate(plain)
    except (ValidationError, RecursionError) as error:
        raise CheckpointError(f"{what} cannot be used: {_first(error)}. Copy or save the checkpoint again.") from error


def _first(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))[:200]
    message = first["msg"].removeprefix("Value error, ")[:200]
    return f"{place!r}: {message}" if place else message
