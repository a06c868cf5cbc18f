"""The options of `sirius-dspy compile`, with their help; what they mean in full is said by the classes they set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sirius_dspy.cli.programs import AdapterName
from sirius_dspy.training.trainers import TrainFrom

ProgramArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROGRAM", help="The program's class, or a function that builds it: `file.py:name` or `module:name`."
    ),
]

# Data

MetricOption = Annotated[
    str, typer.Option(help="`file.py:name` or `module:name` of a function of example and prediction.")
]
TrainOption = Annotated[str, typer.Option(help="Examples to learn from: FILE.jsonl, or ID:SPLIT of a dataset.")]
ValOption = Annotated[
    str | None, typer.Option(help="Examples that decide what is kept, written alike; by default those of --train.")
]
InputsOption = Annotated[str, typer.Option(help="Fields that the program is given, e.g. question,context.")]

# Program

LMOption = Annotated[
    list[str] | None,
    typer.Option(
        help="local/NAME, a .gguf file, provider/model, or module:name, for all agents or as AGENT=LM for one; "
        "repeatable. By default the program's own."
    ),
]
LMSettingOption = Annotated[
    list[str] | None, typer.Option("--lm-setting", help="NAME=VALUE of all LMs, e.g. max_tokens=100; repeatable.")
]
AdapterOption = Annotated[
    AdapterName | None, typer.Option(help="By default `plain` for local models, whose size needs it, else `chat`.")
]
GroupOption = Annotated[
    list[str] | None,
    typer.Option("--group", help="AGENT=PREDICTOR,PREDICTOR that share one set of weights; repeatable."),
]
SharedWeightsFlag = Annotated[bool, typer.Option("--shared-weights", help="One set of weights for all predictors.")]
FrozenOption = Annotated[str | None, typer.Option(help="Agents that are not trained, e.g. judge,opponent.")]

# Runs and repairs

IterationsOption = Annotated[int, typer.Option(help="Rounds of collecting and training.")]
ThresholdOption = Annotated[float, typer.Option(help="Least reward of a success.")]
SamplesOption = Annotated[int, typer.Option(help="Runs per example.")]
TemperatureOption = Annotated[float, typer.Option(help="Of all samples after the first.")]
UntilSolvedFlag = Annotated[bool, typer.Option("--until-solved", help="Sample an example up to its first success.")]
DemosOption = Annotated[
    str | None,
    typer.Option(help="`module:name` of demonstrations by predictor, or of a function that makes them."),
]
RepairOption = Annotated[bool, typer.Option(help="Repair failed runs.")]
CriticOption = Annotated[str | None, typer.Option(help="LM that criticises; by default the agent's own.")]
MaxRepairsOption = Annotated[int | None, typer.Option(help="Failed runs to repair in one iteration at most.")]

# Training

GateOption = Annotated[bool, typer.Option(help="Keep new weights only if the program is not worse with them.")]
MinGainOption = Annotated[float, typer.Option(help="How much better the gate wants the program to be.")]
CumulativeFlag = Annotated[bool, typer.Option("--cumulative", help="Train on the runs of all iterations so far.")]
MaxRowsOption = Annotated[int | None, typer.Option(help="Training rows per predictor at most.")]
MaxPerExampleOption = Annotated[int, typer.Option(help="Training rows per predictor and example at most.")]
TrainFromOption = Annotated[TrainFrom, typer.Option(help="Weights that training starts from.")]
TrainSettingOption = Annotated[
    list[str] | None,
    typer.Option("--train-setting", help="NAME=VALUE for the provider, e.g. n_epochs=3; repeatable."),
]

# Limits

BudgetCallsOption = Annotated[int | None, typer.Option(help="LM calls at most.")]
BudgetTokensOption = Annotated[int | None, typer.Option(help="Tokens at most.")]
BudgetUSDOption = Annotated[float | None, typer.Option("--budget-usd", help="US dollars at most, without training.")]
BudgetSecondsOption = Annotated[float | None, typer.Option(help="Wall time at most.")]
RetriesOption = Annotated[int, typer.Option(help="Further tries of an LM call that failed.")]
CallTimeoutOption = Annotated[float, typer.Option(help="Seconds for one LM call.")]
RunTimeoutOption = Annotated[float, typer.Option(help="Seconds for one run of the program.")]
MaxUnfinishedOption = Annotated[int, typer.Option(help="Examples that may stay without a result in a stage.")]
NumThreadsOption = Annotated[int | None, typer.Option(help="Runs at a time; by default DSPy's setting.")]

# Output

RunDirOption = Annotated[
    Path | None, typer.Option(help="Where everything is kept; by default `runs/compile-NAME-seed-N`.")
]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="Where the trained program is saved; by default `checkpoint` in the run directory.")
]
LibraryOption = Annotated[
    str | None, typer.Option(help="File or URL of the experience library; by default a file in the run directory.")
]
AcceptChangesOption = Annotated[
    str | None, typer.Option(help="Parts that may differ from the run to go on from, as its error names them.")
]
SeedOption = Annotated[int, typer.Option(help="Of sampling and training.")]
MLflowOption = Annotated[bool, typer.Option(help="Write the run to MLflow.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Print the plan; no LM is asked and nothing is written.")]
