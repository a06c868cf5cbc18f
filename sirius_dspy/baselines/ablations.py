"""Ablations of SiriuS: a name, and the settings in which the ablation differs from the full method.

    settings = {"iterations": 2, "augmenter": CriticAugmenter(), ...}
    for name, change in ablations(program, settings).items():
        SiriuS(metric, **{**settings, **change}, run_dir=...)

References:
    Table 4 of SiriuS (arXiv:2502.04780): one agent trained, one model for both roles, no augmentation, one more
    iteration. The paper does not have `max_feedback`, `train_from` and the start without demonstrations.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy

from sirius_dspy.optimizer import prepare
from sirius_dspy.optimizer.settings import SharedWeights
from sirius_dspy.optimizer.sirius import SiriuS
from sirius_dspy.repair.critic import CriticAugmenter
from sirius_dspy.repair.critic_training import CriticTraining
from sirius_dspy.repair.ladder import LadderAugmenter
from sirius_dspy.training.trainers import Trainer, TrainFrom

FEEDBACKS: Sequence[int] = (0, 1, 2, 3)
"""Values of `max_feedback` to compare; 0 must give the same result as no repair."""


def ablations(program: dspy.Module, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every ablation that applies to a program and the settings of its full method.

    Args:
        program: The program whose agents are trained, subject to `agents` and `frozen` in the settings.
        settings: Keyword arguments of `SiriuS` in the full method; missing ones have their default.

    Returns:
        Name to the settings to change. `only <agent>` freezes all others; it and `mixed` are left out where one agent
        is trained anyway, `no cold start` where there are no demonstrations; feedbacks need a `CriticAugmenter`, `no
        reliance filter` a `LadderAugmenter`, `no credit` a `Credit`. `learning critic` needs a `CriticAugmenter` whose
        `critic` is an LM of its own, and has two iterations at least, because the critic learns from the second one
        on; where the full method has one, compare it with `one more iteration`.

    Raises:
        UnpreparedProgramError: The settings' `agents` or `frozen` do not fit the program.
    """
    full = SiriuS(lambda example, prediction: 0.0, **settings).settings
    changes: dict[str, dict[str, Any]] = {"no repair": {"augmenter": None}}
    if isinstance(full.augmenter, LadderAugmenter) and full.augmenter.drop_reliant:
        changes["no reliance filter"] = {"augmenter": without_filter(full.augmenter)}
    if isinstance(full.augmenter, CriticAugmenter):
        changes |= {f"{number} feedbacks": {"augmenter": with_feedback(full.augmenter, number)} for number in FEEDBACKS}
    if isinstance(full.augmenter, CriticAugmenter) and full.augmenter.critic is not None:
        changes["learning critic"] = {
            "augmenter": with_training(full.augmenter),
            "iterations": max(2, full.iterations),
        }
    if full.credit is not None:
        changes["no credit"] = {"credit": None}
    agents = prepare.resolve_agents(program, full.agents, frozen=full.frozen)
    frozen = prepare.check_frozen(full.frozen, agents)
    trained = [agent for agent in agents if agent not in frozen]
    if len(trained) > 1:
        changes |= {f"only {agent}": {"frozen": [other for other in agents if other != agent]} for agent in trained}
        apart = [predictor for agent in agents if agent in frozen for predictor in agents[agent]]
        changes["mixed"] = {"agents": SharedWeights(), "frozen": apart}
    changes["one more iteration"] = {"iterations": full.iterations + 1}
    if full.trainer.train_from == "base":
        changes["from current"] = {"trainer": with_start(full.trainer, "current")}
    if full.collect.warm_start:
        changes["no warm start"] = {"collect": replace(full.collect, warm_start=False)}
    if full.collect.schedule is not None:
        changes["no schedule"] = {"collect": replace(full.collect, schedule=None)}
    if full.collect.demos:
        changes["no cold start"] = {"collect": replace(full.collect, demos=None, warm_start=False)}
    return changes


CRITIC = CriticAugmenter()

TRAINING = CriticTraining(min_rows=10)
"""How the critic of `learning critic` is fine-tuned. Small experiments repair about 20 runs in an iteration; with the
default of 20 rows, chance would decide whether it is."""


def with_start(trainer: Trainer, train_from: TrainFrom) -> Trainer:
    """Return a copy of the trainer that starts each iteration from other weights."""
    other = copy.copy(trainer)
    other.train_from = train_from
    return other


def without_filter(augmenter: LadderAugmenter) -> LadderAugmenter:
    """Return a copy of the augmenter that trains on repairs however much they rely on the help."""
    other = copy.copy(augmenter)
    other.drop_reliant = 0.0
    return other


def with_training(augmenter: CriticAugmenter) -> CriticAugmenter:
    """Return a copy of the augmenter whose critic is fine-tuned on its advice that helped."""
    other = copy.copy(augmenter)
    other.training = TRAINING
    return other


def with_feedback(augmenter: CriticAugmenter = CRITIC, max_feedback: int = 1) -> CriticAugmenter:
    """Return a copy of the augmenter with another number of critiques per step."""
    other = copy.copy(augmenter)
    other.max_feedback = max_feedback
    return other
