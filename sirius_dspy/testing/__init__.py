"""Fakes and contract suites for testing programs, metrics, trainers and trackers. They are public API.

    ScriptedLM       an LM with scripted answers; an unexpected call fails with its prompt
    ToyLM            an LM that memorizes its training rows, through DSPy's fine-tuning interface
    FaultServer      a local server of the OpenAI chat API that fails on request
    ScriptedTrainer  returns given LMs instead of training
    TrainerContract, TrackerContract, AugmenterContract, CuratorContract, GateContract,
    ScheduleContract, LibraryContract
                     tests to inherit: subclass them in a test file and define the required fixtures

All of them work in threads and with asyncio, and only the contract suites need pytest. Copies of an LM, which DSPy
makes in many places, share the script, the count of calls and the memory.
"""

from sirius_dspy.testing.augmenter import AugmenterContract
from sirius_dspy.testing.curator import CuratorContract
from sirius_dspy.testing.engine import Prompt, UnexpectedCallError
from sirius_dspy.testing.events import compile_events
from sirius_dspy.testing.gate import GateContract
from sirius_dspy.testing.library import LibraryContract
from sirius_dspy.testing.schedule import ScheduleContract
from sirius_dspy.testing.scripted import ScriptedLM, chat_reply
from sirius_dspy.testing.server import FaultServer
from sirius_dspy.testing.toy import ToyLM
from sirius_dspy.testing.tracker import TrackerContract
from sirius_dspy.testing.trainer import ScriptedTrainer, TrainerContract

__all__ = [
    "AugmenterContract",
    "CuratorContract",
    "FaultServer",
    "GateContract",
    "LibraryContract",
    "Prompt",
    "ScheduleContract",
    "ScriptedLM",
    "ScriptedTrainer",
    "ToyLM",
    "TrackerContract",
    "TrainerContract",
    "UnexpectedCallError",
    "chat_reply",
    "compile_events",
]
