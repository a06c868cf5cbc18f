"""The running batch of the Transformers engine: rows join with a pass over their prompt, and leave when they are done.

Rows are padded on the left, so that the next token of each is in the same column.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sirius_dspy.local.batching import Call, Written
from sirius_dspy.local.chat import Chat
from sirius_dspy.local.engine import GenerationOptions
from sirius_dspy.local.key_values import can_combine, combine, new_cache
from sirius_dspy.local.streaming import cut_at_stop


@dataclass(slots=True, eq=False)
class Row:
    """One request in a batch."""

    call: Call
    generator: torch.Generator
    """Draws the samples of this row alone, so that they do not depend on its neighbors."""
    written: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, call: Call) -> Row:
        """Begin a reply. The generator is on the CPU, so that equal seeds draw equal numbers on every device."""
        return cls(call, torch.Generator(device="cpu").manual_seed(call.options.rng_seed))

    def __len__(self) -> int:
        return len(self.call.ids) + len(self.written)

    @property
    def is_done(self) -> bool:
        """Whether the caller has its answer."""
        return self.call.done.done()

    def append(self, token: int, chat: Chat) -> None:
        """Append a token, and answer the call if it was the last one."""
        self.written.append(token)
        if self.is_done:
            return
        if self.call.news is not None:
            self.call.news.put((token,))
        if token in chat.end_ids or self._has_stopped(chat):
            self.call.done.set_result(Written([*self.written], "stop"))
        elif len(self.written) >= self.call.max_tokens:
            self.call.done.set_result(Written([*self.written], "length"))

    def _has_stopped(self, chat: Chat) -> bool:
        if not self.call.options.stop:
            return False
        text = chat.decode(self.written)
        return cut_at_stop(text, self.call.options.stop) != text


class RunningBatch:
    """The rows that are continued together, one token of each at a time.

    Args:
        model: A causal language model of Transformers.
        chat: Its tokenizer.
    """

    def __init__(self, model: Any, chat: Chat) -> None:
        self.rows: list[Row] = []
        self._model, self._chat = model, chat
        self._cache: Any = None
        self._can_combine = can_combine(model.config)

    @property
    def is_open(self) -> bool:
        """Whether rows can join.

        A model that remembers other things than keys and values takes the next rows when all others are done.
        """
        return self._can_combine or not self.rows

    def advance(self, joining: Sequence[Row]) -> None:
        """Write one token in every row, and answer the calls that are done.

        Args:
            joining: Rows that join the batch; if an error is raised, they do not.
        """
        with torch.inference_mode():
            if self.rows:
                self._continue(self.rows, [row.written[-1:] for row in self.rows], self._cache)
            joined = self._read(joining) if joining else None
            self._regroup(joining, joined)

    def clear(self) -> list[Row]:
        """Take out all rows, which can join again."""
        rows, self.rows, self._cache = self.rows, [], None
        return rows

    def _read(self, rows: Sequence[Row]) -> Any:
        """Read the prompts of new rows, with what they have written before they left."""
        tokens = [[*row.call.ids, *row.written] for row in rows]
        return self._continue(rows, tokens, new_cache() if self._can_combine else None)

    def _continue(self, rows: Sequence[Row], tokens: Sequence[Sequence[int]], cache: Any) -> Any:
        """Append the next token of each row, and return the cache with those that were read."""
        filler, device = self._chat.end_id, self._model.device
        ids = pad(tokens, filler, device)
        width = ids.shape[1] + (0 if cache is None else cache.get_seq_length())
        mask = mark([len(row) for row in rows], device, width)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **known(self._model, position_ids=positions, logits_to_keep=1),
        )
        for row, token in zip(rows, choose(output.logits[:, -1].float(), rows), strict=True):
            row.append(token, self._chat)
        return output.past_key_values

    def _regroup(self, joining: Sequence[Row], joined: Any) -> None:
        """Drop the rows that are done, and add the new ones."""
        if not self._can_combine:
            self.rows, self._cache = [*self.rows, *joining], joined or self._cache
            if all(row.is_done for row in self.rows):
                self.rows, self._cache = [], None
            return
        sets = [(self._cache, self.rows), (joined, joining)]
        live = [(cache, [number for number, row in enumerate(rows) if not row.is_done]) for cache, rows in sets]
        parts = [(cache, numbers) for cache, numbers in live if numbers]
        rows = [row for row in [*self.rows, *joining] if not row.is_done]
        if joining or len(rows) < len(self.rows):
            width = max((len(row) for row in rows), default=1) - 1  # the last token is not read yet
            self._cache = combine(parts, width) if parts else None
        self.rows = rows


def known(model: Any, **values: Any) -> dict[str, Any]:
    """Return those arguments that the model has; some have no numbers of positions, or cannot leave out scores."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT's model
    accepted = inspect.signature(plain.forward).parameters
    return {name: value for name, value in values.items() if name in accepted}


def pad(rows: Sequence[Sequence[int]], filler: int, device: Any) -> torch.Tensor:
    """Return rows of tokens `(rows, time)`, padded on the left so that all end together."""
    width = max(map(len, rows))
    return torch.tensor([[filler] * (width - len(row)) + [*row] for row in rows], device=device)


def mark(lengths: Sequence[int], device: Any, width: int | None = None) -> torch.Tensor:
    """Return a mask of rows of these lengths, padded on the left: 0 for padding, and 1 for tokens."""
    width = width or max(lengths)
    return (torch.arange(width, device=device) >= width - torch.tensor(lengths, device=device)[:, None]).long()


def choose(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """Choose the next token of every row from scores `(rows, vocabulary)`."""
    chosen = logits.argmax(-1)
    drawing = [number for number, row in enumerate(rows) if row.call.options.temperature > 0]
    if drawing:
        options = [rows[number].call.options for number in drawing]
        chosen[drawing] = _sample(logits[drawing], options, [rows[number].generator for number in drawing])
    tokens: list[int] = chosen.tolist()
    return tokens


def _sample(
    logits: torch.Tensor, options: Sequence[GenerationOptions], generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Draw a token of each row of scores `(rows, vocabulary)`, with its own temperature, `top_k` and `top_p`."""

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device)[:, None]

    scores, order = (logits / column([option.temperature for option in options])).sort(descending=True)
    probabilities = scores.softmax(-1)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    probabilities[ranks >= column([option.top_k or len(ranks) for option in options])] = 0
    sums = probabilities.cumsum(-1)
    kept = sums - probabilities < column([option.top_p for option in options]) * sums[:, -1:]
    sums = (probabilities * kept).cumsum(-1)
    drawn = column([torch.rand((), generator=generator).item() for generator in generators]) * sums[:, -1:]
    places = torch.searchsorted(sums, drawn, right=True).minimum(kept.sum(-1, keepdim=True) - 1)
    return order.gather(-1, places)[:, 0]
