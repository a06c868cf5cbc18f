"""Experiments: compare methods on one task over several seeds, with equal budgets.

recipe.py     the settings of an experiment, in code or in a TOML file
task.py       the task of a recipe; lms.py its LM
methods.py    the methods of a recipe
run.py        Experiment: checks, cells, resuming
measure.py    compiles and tests a method; ledger.py counts usage across interruptions
cell.py       a method with a seed, and its answers
results.py    all numbers; render.py, plot.py and write.py output them
events.py     what trackers receive; tracking.py writes to MLflow
"""

from sirius_dspy.experiment.cell import Cell, Outcome
from sirius_dspy.experiment.errors import ExperimentError
from sirius_dspy.experiment.events import CellEnded, CellStarted, ExperimentEnded, ExperimentStarted
from sirius_dspy.experiment.lms import lm_from
from sirius_dspy.experiment.methods import Bench, Entry, list_methods
from sirius_dspy.experiment.recipe import Recipe
from sirius_dspy.experiment.render import render_markdown
from sirius_dspy.experiment.results import Comparison, Results, Row
from sirius_dspy.experiment.run import Experiment
from sirius_dspy.experiment.task import Task
from sirius_dspy.experiment.tracking import MLflowRuns
from sirius_dspy.experiment.write import write_results

__all__ = [
    "Bench",
    "Cell",
    "CellEnded",
    "CellStarted",
    "Comparison",
    "Entry",
    "Experiment",
    "ExperimentEnded",
    "ExperimentError",
    "ExperimentStarted",
    "MLflowRuns",
    "Outcome",
    "Recipe",
    "Results",
    "Row",
    "Task",
    "list_methods",
    "lm_from",
    "render_markdown",
    "write_results",
]
