"""The caller's side of preference optimization: settings, tokenized pairs, and one job of the child process.

A job goes on from weights that were fine-tuned on rows: the same adapter is trained further, so that in the end there
is one adapter of the base and one merged file, as after fine-tuning alone.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sirius_dspy import checks
from sirius_dspy.local.chat import Chat, load_chat
from sirius_dspy.local.children import Progress, run_job
from sirius_dspy.local.devices import Device, training_gpus
from sirius_dspy.local.lora import to_tokens
from sirius_dspy.local.models import new_name
from sirius_dspy.local.provider import make_room, training_copy
from sirius_dspy.local.weights import Weights

logger = logging.getLogger(__name__)

_SETTINGS = {
    **dict.fromkeys(("epochs", "batch_size", "max_length"), checks.whole(1)),
    **dict.fromkeys(("beta", "learning_rate"), checks.number(above=0)),
    "sft_weight": checks.number(0),
    "warmup": checks.number(0, below=1),
    "seed": checks.SEED,
}
"""The kind of each field of `PreferenceOptions`."""


@dataclass(frozen=True, slots=True)
class PreferenceOptions:
    """Settings of direct preference optimization (DPO), which follows fine-tuning.

    References:
        Direct Preference Optimization (arXiv:2305.18290); for the term of `sft_weight`, Iterative Reasoning Preference
        Optimization (arXiv:2404.19733).
    """

    beta: float = 0.1
    """How closely the weights stay to the fine-tuned ones; larger is closer."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW, which decays linearly to zero; a twentieth of the default of `LoraOptions`."""
    epochs: int = 1
    batch_size: int = 4
    """Pairs per step."""
    sft_weight: float = 1.0
    """Weight of the loss of the chosen replies themselves, in nats per token. Without it, DPO may lower the probability
    of both replies, as long as it lowers the rejected one more; small models then end in neither."""
    max_length: int = 1024
    """Maximum number of tokens of prompt and reply. Longer pairs are dropped and counted, never truncated."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises from zero."""
    seed: int = 0
    """Seed of the order of the pairs."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train.

        Raises:
            SettingsError: A setting is of the wrong kind or out of its range.
        """
        checks.check("PreferenceOptions", {name: getattr(self, name) for name in _SETTINGS}, _SETTINGS)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Two replies to one prompt, as tokens."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    """The better reply, with the end of its turn."""
    rejected: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def to_pair(chat: Chat, pair: Mapping[str, Any]) -> TokenPair:
    """Tokenize one pair in TRL's conversational format: `prompt`, `chosen` and `rejected` are lists of messages.

    Tools that were offered natively are in `tools`, as JSON.

    Raises:
        ValueError: A reply is not one message of the assistant.
    """
    tools = json.loads(pair.get("tools") or "[]")
    chosen, rejected = (
        to_tokens(chat, {"messages": [*pair["prompt"], *pair[name]], "tools": tools}) for name in ("chosen", "rejected")
    )
    return TokenPair(chosen.prompt, chosen.completion, rejected.completion)


def to_pairs(base: Weights, pairs: Sequence[Mapping[str, Any]], options: PreferenceOptions) -> list[TokenPair]:
    """Tokenize pairs, and drop those that are too long.

    Raises:
        ValueError: A reply is not one message of the assistant.
    """
    chat = load_chat(base)
    tokens = [to_pair(chat, pair) for pair in pairs]
    kept = [pair for pair in tokens if len(pair) <= min(options.max_length, chat.context)]
    if len(kept) < len(tokens):
        text = "%d of %d preference pairs are longer than max_length=%d tokens and are left out."
        logger.warning(text, len(tokens) - len(kept), len(tokens), options.max_length)
    return kept


@dataclass(frozen=True, slots=True)
class PreferenceJob:
    """The input of the child process."""

    module: ClassVar[str] = "sirius_dspy.local.prefer"

    weights: Path
    """The GGUF file or model folder of the base."""
    training_copy: Path | None
    """See `sirius_dspy.local.lora.TrainingJob`."""
    tokenizer: Path
    adapter: Path
    """The fine-tuned adapter of the base, from which training goes on. It is also the reference."""
    pairs: Sequence[TokenPair]
    options: PreferenceOptions
    folder: Path
    """Receives `adapter/` and the merged weights."""
    name: str
    """Name that is written into the new weights."""

    def to_json(self) -> str:
        """Serialize the job for `sirius_dspy.local.prefer`."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> PreferenceJob:
        """Read a job that `to_json` wrote."""
        values = json.loads(text)
        for name in ("weights", "tokenizer", "adapter", "folder"):
            values[name] = Path(values[name])
        values["training_copy"] = values["training_copy"] and Path(values["training_copy"])
        values["pairs"] = [TokenPair(*(tuple(pair[name]) for name in TokenPair.__slots__)) for pair in values["pairs"]]
        values["options"] = PreferenceOptions(**values["options"])
        return cls(**values)


def prefer(
    base: Weights,
    adapter: Path,
    pairs: Sequence[TokenPair],
    options: PreferenceOptions,
    folder: Path,
    key: str,
    on_progress: Progress | None = None,
    device: Device | None = None,
) -> None:
    """Train an adapter further on preference pairs, and merge it into its base.

    Args:
        base: The weights that the adapter belongs to.
        adapter: A folder of PEFT's.
        pairs: At least one.
        options: Settings of the job.
        folder: The weight folder to write; it appears when it is complete.
        key: Identifies the job; it is written into `training.json`.
        on_progress: Called after every step with the loss of the pairs, in nats; log 2 says that they are not told
            apart.
        device: That of the LM. It trains on one GPU: with a number on that one, otherwise on the first.

    Raises:
        TrainingError: The job failed.
    """
    started = time.monotonic()
    gpu = training_gpus(device)[0]
    make_room(base, gpu)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # leftover of a killed run
    draft.mkdir(parents=True)
    try:
        task = PreferenceJob(
            weights=base.path,
            training_copy=training_copy(base),
            tokenizer=load_chat(base).folder,
            adapter=adapter,
            pairs=pairs,
            options=options,
            folder=draft,
            name=new_name(base.id),
        )
        measured = run_job(task, stop=threading.Event(), hooks=[on_progress], gpu=gpu)
        record = {
            "key": key,
            "base": base.id,
            "options": dataclasses.asdict(options),
            "num_pairs": len(pairs),
            **measured,
            "seconds": time.monotonic() - started,
        }
        (draft / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        shutil.rmtree(draft / "scratch", ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
