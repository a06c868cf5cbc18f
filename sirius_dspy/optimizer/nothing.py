"""Why an iteration gave no training row, in the user's terms."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping

from sirius_dspy.errors import NoSuccessError
from sirius_dspy.optimizer.collect import collected
from sirius_dspy.optimizer.session import Session
from sirius_dspy.training.curate import TrainingSet


def explain_nothing(session: Session, iteration: int, sets: Mapping[str, TrainingSet]) -> None:
    """Explain a first iteration without a single row; a later one ends the compile with the best program so far.

    Raises:
        NoSuccessError: In the first iteration.
    """
    if iteration > 1:
        warnings.warn(
            f"Iteration {iteration} gave no training row; the compile ends with the best program so far.",
            UserWarning,
            stacklevel=5,
        )
        return
    if dropped := sum((Counter(rows.dropped) for rows in sets.values()), Counter[str]()):
        raise NoSuccessError(_all_dropped(session, dropped))
    raise NoSuccessError(_none_succeeded(session, iteration))


def _none_succeeded(session: Session, iteration: int) -> str:
    runs = list(collected(session, iteration))
    kinds = Counter(run.failure.kind for run in runs if run.failure is not None)
    best = max((run.reward for run in runs if run.failure is None), default=None)
    reasons = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(3)) or "none raised"
    return (
        f"None of {len(runs)} runs reached the threshold {session.settings.threshold} (best reward {best}; failures: "
        f"{reasons}), and repair did not help, so there is nothing to learn from. Try demonstrations "
        "(`collect=Collect(demos={'predictor': [examples]})`), a stronger `teacher=`, more samples, easier examples, a "
        f"critic LM, or a lower `threshold`.{_about_adapter(session, kinds)} The runs are in {session.library.url!r}."
    )


def _about_adapter(session: Session, kinds: Counter[str]) -> str:
    """Small local models rarely keep to the format of DSPy's default adapter."""
    is_local = any(model.startswith("local/") for model in session.plan.lms.values())
    if not is_local or not kinds.get("AdapterParseError") or "PlainAdapter" in session.plan.identity["adapter"]:
        return ""
    return (
        " Most replies of the local model did not parse: call `dspy.configure(adapter=sirius_dspy.PlainAdapter())`, "
        "whose format models of this size can keep to."
    )


def _all_dropped(session: Session, dropped: Counter[str]) -> str:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.most_common())
    adapter = session.plan.identity["adapter"].rpartition(".")[2]
    return (
        f"Runs reached the threshold {session.settings.threshold}, but none of their steps could become a training "
        f"row; dropped were {reasons}. 'does not parse back' means that the adapter {adapter} cannot write the outputs "
        "so that it reads them again; 'cut off' that `max_tokens` is too small. The runs are in "
        f"{session.library.url!r}."
    )
