"""A canary proves that a server answers with the adapter that was trained, not with the base or an older one.

Training notes how likely one reply is under the new weights and under the base. The server is asked the same before the
adapter is used. Token ids are compared, so that no chat template comes between.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from sirius_dspy.errors import AdapterError
from sirius_dspy.vllm.server import VLLMServer

logger = logging.getLogger(__name__)

FILE = "canary.json"

_NOISE_NATS = 0.05
"""Mean difference per token that other arithmetic makes, such as bfloat16 on the server."""

_SHARE = 0.25
"""The served weights may differ from the trained ones by this share of what training changed."""


@dataclass(frozen=True)
class Canary:
    """A prompt, a reply, and the log-probability in nats of each token of the reply."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    trained: tuple[float, ...]
    """Under the adapter."""
    base: tuple[float, ...]
    """Under the base weights."""

    @classmethod
    def read(cls, adapter: Path) -> Canary | None:
        """Read the canary of a PEFT folder, if it has one."""
        path = adapter / FILE
        if not path.exists():
            logger.warning("The adapter in %s has no %s, so nothing proves that the server uses it.", adapter, FILE)
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: tuple(items) for name, items in values.items()})

    def write(self, adapter: Path) -> None:
        """Write it into a PEFT folder."""
        (adapter / FILE).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @property
    def gap(self) -> float:
        """How much training changed the reply, in nats per token."""
        return distance(self.trained, self.base)

    def prove(self, server: VLLMServer, name: str) -> None:
        """Compare with what the server answers under a name.

        Raises:
            AdapterError: Other weights answer than were trained.
        """
        served = server.score(name, self.prompt, self.completion)
        off = distance(served, self.trained)
        allowed = max(_NOISE_NATS, _SHARE * self.gap)
        if self.gap <= _NOISE_NATS:
            logger.warning("Training hardly changed %r, so its canary cannot tell it from the base weights.", name)
        if off <= allowed:
            return
        to_base = distance(served, self.base)
        which = "ignores it and answers with the base weights" if to_base <= allowed else "answers with other weights"
        raise AdapterError(
            f"The server loaded the adapter {name!r}, but {which}: its log-probabilities differ from those in training "
            f"by {off:.2f} nats per token, {allowed:.2f} are allowed, and by {to_base:.2f} from the base. Restart the "
            "server, check that it serves the base that was trained, then run the same `compile` again to resume."
        )


def distance(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    """Return the mean absolute difference."""
    return sum(abs(one - other) for one, other in zip(left, right, strict=True)) / len(left)
