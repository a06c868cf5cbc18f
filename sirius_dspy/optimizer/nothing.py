"""Why an iteration gave no training row, in the user's terms."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

from sirius_dspy.errors import NoSuccessError
from sirius_dspy.optimizer.collect import collected
from sirius_dspy.optimizer.session import Session
from sirius_dspy.training.curate import TrainingSet
from sirius_dspy.trajectory import Trajectory


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
    runs = list(collected(session, iteration))
    good = [run for run in runs if run.succeeded(session.settings.threshold)]
    raise NoSuccessError(_none_chosen(session, good) if good else _none_succeeded(session, runs))


def _none_chosen(session: Session, runs: Sequence[Trajectory]) -> str:
    trained = {name for names in session.plan.trained.values() for name in names}
    if not any(step.predictor in trained for run in runs for step in run.steps):
        return (
            f"{len(runs)} runs reached the threshold {session.settings.threshold}, but called none of the predictors "
            f"{sorted(trained)} that are to be trained. Call them in `forward`: the program may answer without them, "
            f"or call others in their place. The runs are in {session.library.url!r}."
        )
    return (
        f"{len(runs)} runs reached the threshold {session.settings.threshold}, but the curator "
        f"{type(session.settings.curator).__name__} returned no training rows and gave no reason in `dropped`. The "
        f"runs are in {session.library.url!r}."
    )


def _none_succeeded(session: Session, runs: Sequence[Trajectory]) -> str:
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
    advice = {
        "does not parse back": f"the adapter {adapter} cannot write the outputs so that it reads them again",
        "cut off": "`max_tokens` is too small",
        "images": "the agent's LM learns from text alone; leave it as it is with `frozen=[...]`",
    }
    meanings = [
        f" {reason!r} means that {meaning}."
        for reason, meaning in advice.items()
        if any(reason in why for why in dropped)
    ]
    return (
        f"Runs reached the threshold {session.settings.threshold}, but none of their steps could become a training "
        f"row; dropped were {reasons}.{''.join(meanings)} The runs are in {session.library.url!r}."
    )
