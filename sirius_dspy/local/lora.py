"""LoRA fine-tuning as its caller sees it: settings, tokenized rows, and the job of the child process that trains.

Rows are checked and tokenized before the process starts, so invalid ones raise an error within a second.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sirius_dspy import checks
from sirius_dspy.errors import MissingDependencyError, SettingsError, TrainingError, UnreadableModelError
from sirius_dspy.local.chat import Chat
from sirius_dspy.local.home import INSTALL
from sirius_dspy.local.weights import Weights

logger = logging.getLogger(__name__)

STOP_WINDOW = 8
"""Number of steps whose losses are averaged to decide whether to end training early."""

PACKAGES = ("torch", "transformers", "peft", "gguf", "safetensors")


_SETTINGS = {
    **dict.fromkeys(("rank", "alpha", "epochs", "batch_size", "max_length"), checks.whole(1)),
    "learning_rate": checks.number(above=0),
    **dict.fromkeys(("warmup", "dropout"), checks.number(0, below=1)),
    **dict.fromkeys(("weight_decay", "stop_loss"), checks.number(0)),
    "seed": checks.SEED,
    **dict.fromkeys(("qlora", "gradient_checkpointing"), checks.FLAG),
}
"""The kind of each field of `LoraOptions`."""

_INSTALL_QLORA = "pip install 'sirius-dspy[qlora]'"


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Settings of LoRA fine-tuning.

    The defaults suit a 135M model and 30 to 300 short rows. They were chosen on validation items of the demo's task,
    where its first agent, trained on 100 rows, gave 56 % exact answers with batches of 16, a rate of 1e-3 and 3 epochs,
    63 % with batches of 8 and 2 epochs, 68 % with a rate of 2e-3 as well, 61 % with 4e-3; and from only 50 rows 68 %
    with batches of 4, a rate of 2e-3 and 3 epochs. One run each, 100 items: less than 10 points apart is noise.
    """

    rank: int = 16
    """Rank of the update of every linear layer. A small model needs updates of all layers to change its attention."""
    alpha: int = 32
    """The update is scaled by `alpha / rank`."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW, which decays linearly to zero."""
    epochs: int = 3
    batch_size: int = 4
    """Rows per step; rows of similar length share a step. With few rows, use small batches for more steps."""
    max_length: int = 1024
    """Maximum number of tokens of prompt and completion. Longer rows are dropped and counted, never truncated."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = 0.0
    dropout: float = 0.0
    stop_loss: float = 0.02
    """After the first epoch, training ends early if the mean loss of the last `STOP_WINDOW` steps, in nats per token,
    is
    below this value, because the rows are memorized by then. 0 never ends early."""
    seed: int = 0
    """Seed of the order of the batches and of the initial adapter."""
    qlora: bool = False
    """Whether to train on base weights of 4 bits (QLoRA, arXiv:2305.14314), which take a quarter of the memory of 16
    bits. It needs `sirius-dspy[qlora]` and a model folder. The adapter is then merged into the weights in their own
    precision. Preference optimization after it is not quantized."""
    gradient_checkpointing: bool = False
    """Whether to compute the activations of each layer again in the backward pass, in place of keeping them: less
    memory for long rows or large models, and about a third more operations. The weights become the same."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train.

        Raises:
            SettingsError: A setting is of the wrong kind or out of its range.
        """
        checks.check("LoraOptions", {name: getattr(self, name) for name in _SETTINGS}, _SETTINGS)

    def replace(self, changes: Mapping[str, Any]) -> LoraOptions:
        """Return a copy with some fields replaced.

        Raises:
            TypeError: A name is not a field.
        """
        names = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise TypeError(
                f"Unknown training settings: {', '.join(map(repr, unknown))}. Expected 'output_dir', 'on_progress', "
                f"or a field of LoraOptions: {', '.join(names)}."
            )
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One training row as tokens."""

    prompt: tuple[int, ...]
    """The prompt as the engine receives it; it carries no loss."""
    completion: tuple[int, ...]
    """The reply that the model should generate, with the end of its turn."""
    weight: float = 1.0
    """How much the row counts beside rows of weight 1."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def to_tokens(chat: Chat, row: Mapping[str, Any]) -> TokenRow:
    """Tokenize one chat row, whose last message is the reply to learn.

    The prompt comes from the same function as at inference. The completion is the reply and the end-of-turn token,
    where the engine stops; the line break that a template writes after it is never generated.

    Args:
        chat: Of the weights.
        row: `messages`, `tools` if tools were offered natively, and `weight` if it is not 1.

    Raises:
        ValueError: The last message is not the assistant's, or it is the only one.
        UnreadableModelError: The chat template does not write tools.
    """
    roles = [message["role"] for message in row["messages"]]
    if len(roles) < 2 or roles[-1] != "assistant":
        raise ValueError(
            f"A training row has the roles {roles!r}; expected a prompt and, last, one 'assistant' message."
        )
    if has_tools(row) and not chat.renders_tools:
        raise UnreadableModelError(
            f"The chat template in {str(chat.folder)!r} does not write tools and tool calls, so the model cannot be "
            "trained on them. Choose a model whose template does."
        )
    *messages, reply = row["messages"]
    tools = row.get("tools", ())
    prompt = chat.encode(chat.prompt(messages, tools))
    completion = chat.encode_completion(chat.reply_text(messages, reply, tools))
    return TokenRow(tuple(prompt), tuple(completion), row.get("weight", 1.0))


def has_tools(row: Mapping[str, Any]) -> bool:
    """Return whether a chat row has native tools, tool calls or their results."""
    return bool(row.get("tools")) or any(
        message["role"] == "tool" or message.get("tool_calls") for message in row["messages"]
    )


def drop_long_rows(rows: Sequence[TokenRow], max_length: int) -> list[TokenRow]:
    """Drop the rows that are longer than `max_length`.

    Raises:
        TrainingError: No row is left.
    """
    if not rows:
        raise TrainingError("There are no training rows. Collect successful runs first, or lower the threshold.")
    kept = [row for row in rows if len(row) <= max_length]
    if not kept:
        raise TrainingError(
            f"All {len(rows)} training rows are longer than `max_length={max_length}` tokens (the shortest has "
            f"{min(map(len, rows))}), so there is nothing to train on. Raise `max_length` or shorten the inputs."
        )
    if len(kept) < len(rows):
        logger.warning(
            "%d of %d training rows are longer than max_length=%d tokens and are left out.",
            len(rows) - len(kept),
            len(rows),
            max_length,
        )
    return kept


def check_packages(*further: str) -> None:
    """Check, without importing them, that the packages for training, and further ones, are installed.

    Raises:
        MissingDependencyError: A package is not installed.
    """
    missing = [name for name in (*PACKAGES, *further) if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"Fine-tuning needs {', '.join(missing)}. Run `{INSTALL}`.")


def check_quantization(weights: Weights, options: LoraOptions) -> None:
    """Check that these weights can be trained as the options say.

    Raises:
        SettingsError: The weights are a GGUF file, and are to be loaded with 4 bits.
    """
    if options.qlora and weights.is_gguf:
        raise SettingsError(
            f"`qlora` needs a model folder with safetensors, but {weights.id!r} is a GGUF file, which training "
            "de-quantizes. Leave it out, or use the model that the file was made from."
        )


def check_bitsandbytes(options: LoraOptions) -> None:
    """Check that the package for weights of 4 bits is installed, if it is needed.

    Raises:
        MissingDependencyError: It is not.
    """
    if options.qlora and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(f"`qlora` needs bitsandbytes. Run `{_INSTALL_QLORA}`.")


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """One agent's part of a job."""

    rows: Sequence[TokenRow]
    options: LoraOptions
    folder: Path
    """Receives `adapter/` and the merged weights: `model.gguf`, or the files of a model folder."""

    @property
    def name(self) -> str:
        """What errors call it: the name of the weight folder, which a run directory names after the agent."""
        return self.folder.name.removeprefix(".").removesuffix(".draft")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> TrainingTask:
        """Read a task that `TrainingJob.to_json` wrote."""
        rows = [TokenRow(tuple(row["prompt"]), tuple(row["completion"]), row["weight"]) for row in values["rows"]]
        return cls(rows, LoraOptions(**values["options"]), Path(values["folder"]))


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """The input of the child process: agents whose adapters are trained in one pass over the same weights."""

    module: ClassVar[str] = "sirius_dspy.local.train"

    weights: Path
    """The GGUF file or model folder to start from."""
    training_copy: Path | None
    """Folder in which their de-quantized copy is kept for the next job; `None` keeps no copy."""
    tokenizer: Path
    tasks: Sequence[TrainingTask]
    name: str
    """Name that is written into the new weights."""

    def to_json(self) -> str:
        """Serialize the job for `sirius_dspy.local.train`."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> TrainingJob:
        """Read a job that `to_json` wrote."""
        values = json.loads(text)
        for name in ("weights", "tokenizer"):
            values[name] = Path(values[name])
        values["training_copy"] = values["training_copy"] and Path(values["training_copy"])
        values["tasks"] = [TrainingTask.from_values(task) for task in values["tasks"]]
        return cls(**values)
