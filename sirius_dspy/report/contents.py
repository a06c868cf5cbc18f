"""What a report is made from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sirius_dspy.optimizer.results import CompileResult, HeldOutScores, ProgramScore, score_interval
from sirius_dspy.report.experience import Experience


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes:
        results: `detailed_results` of the compiled program, or what `read_results` gives.
        experience: The compile's part of the library, from `read_experience`. Without it, the report has no library
            growth, no data flow and no runs.
        test: Scores on examples that the compile never saw, if somebody measured them.
        date: When the compile ended; for the head of the report.
    """

    results: CompileResult
    experience: Experience | None = None
    test: HeldOutScores | None = None
    date: date | None = None

    @property
    def is_in_percent(self) -> bool:
        """Whether scores are shares of solved examples, so that they are shown in per cent."""
        scores = [(entry.score, entry.num_val) for entry in self.results.iterations]
        scores += [] if self.test is None else [(entry.score, entry.num_examples) for entry in self.test.programs]
        return bool(scores) and all(score_interval(*score) is not None for score in scores)

    @property
    def tested(self) -> ProgramScore | None:
        """The score of the compiled program on test examples."""
        return None if self.test is None else self.test.compiled_score
