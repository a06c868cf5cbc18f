"""Self-improving multi-agent DSPy programs: each agent's own weights get better from its own experience."""

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.checkpoint import load, save
from sirius_dspy.curate import Curator
from sirius_dspy.evaluate import Evaluation, evaluate
from sirius_dspy.library import ExperienceLibrary
from sirius_dspy.local import LocalLM, LoraOptions
from sirius_dspy.optimizer import SiriuS
from sirius_dspy.repair import CriticAugmenter, RepairDemos

__all__ = [
    "CriticAugmenter",
    "Curator",
    "Evaluation",
    "ExperienceLibrary",
    "LocalLM",
    "LoraOptions",
    "PlainAdapter",
    "RepairDemos",
    "SiriuS",
    "evaluate",
    "load",
    "save",
]
__version__ = "0.1.0"
