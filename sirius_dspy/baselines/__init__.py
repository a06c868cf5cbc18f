"""Methods to compare SiriuS with. Each has `compile(student, trainset=, valset=)`, and one meter counts for all.

PromptedTeam        the untrained program, with or without demonstrations
SingleAgent         one predictor that replaces the team, untrained or with any other method
star                STaR: `SingleAgent(program, star(metric))`
BootstrapFinetune   DSPy's optimizer, with one set of weights per predictor or a shared one
GEPA, MIPROv2       DSPy's prompt optimizers
ablations           SiriuS with one setting changed
Meter, Limits       count what a method uses, and stop it at a limit
feedback_quality    measures the effects of the critic's advice
"""

from sirius_dspy.baselines.ablations import ablations, with_feedback
from sirius_dspy.baselines.bootstrap import BootstrapFinetune
from sirius_dspy.baselines.budget import BudgetExceededError, Limits, Meter
from sirius_dspy.baselines.feedback import FeedbackQuality, feedback_quality, total
from sirius_dspy.baselines.method import Method, PromptedTeam, SingleAgent
from sirius_dspy.baselines.prompts import GEPA, MIPROv2
from sirius_dspy.baselines.star import Rationalizer, star
from sirius_dspy.baselines.vote import MajorityVote
from sirius_dspy.optimizer.spent import Spent

__all__ = [
    "GEPA",
    "BootstrapFinetune",
    "BudgetExceededError",
    "FeedbackQuality",
    "Limits",
    "MIPROv2",
    "MajorityVote",
    "Meter",
    "Method",
    "PromptedTeam",
    "Rationalizer",
    "SingleAgent",
    "Spent",
    "ablations",
    "feedback_quality",
    "star",
    "total",
    "with_feedback",
]
