"""What a fine-tuning job will cost, told before it begins: rows, tokens, epochs, and the price of a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sirius_dspy.optimizer.ranges import Range


@dataclass(frozen=True)
class JobPlan:
    """What the fine-tuning job of one agent will take, if its server charges for trained tokens."""

    agent: str
    lm: str
    """Id of the LM that is trained."""
    rows: Range
    """At most as many as the curator keeps if all runs succeed."""
    row_tokens: Range
    """Prompt and completion of one row; the bounds are wide, because agents have shorter and longer ones."""
    epochs: int
    """As set, or else as OpenAI chooses for the largest number of rows."""
    price: float | None
    """US dollars per million trained tokens; `None` if nobody knows."""

    @property
    def tokens(self) -> Range:
        """Trained tokens, over all epochs."""
        return self.rows * self.row_tokens * Range.exactly(self.epochs)

    @property
    def usd(self) -> Range | None:
        """US dollars; `None` if the price is unknown."""
        return None if self.price is None else self.tokens * Range.exactly(self.price / 1e6)

    def __str__(self) -> str:
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        most = f"at most {self.rows.high:,.0f} rows of {self.row_tokens.high:,.0f} tokens, {epochs}"
        if self.usd is None:
            return f"{most}; the price of training {self.lm!r} is unknown, see `HostedTrainer(prices=...)`"
        return f"{most}, {self.price:g} US dollars per million tokens: at most {self.usd.high:,.2f} US dollars"


def tell_jobs(jobs: Sequence[JobPlan]) -> list[str]:
    """Say in words the most that a job of each agent takes, and all of them, with what that rests on."""
    largest = {job.agent: job for job in sorted(jobs, key=lambda job: job.tokens.high)}
    lines = [f"A fine-tuning job of {agent}: {job}." for agent, job in largest.items()]
    known = [job.usd.high for job in jobs if job.usd is not None]
    if known and len(known) == len(jobs):
        lines.append(
            f"All {len(jobs)} jobs: at most {sum(known):,.2f} US dollars, if every run succeeds and rows are four "
            "times as long as expected."
        )
    return lines
