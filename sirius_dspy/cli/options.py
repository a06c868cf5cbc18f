"""The options of `sirius-dspy compile`, with their help. The classes that they configure document them in full."""

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
    str, typer.Option(help="`file.py:name` or `module:name` of a metric, a function of example and prediction.")
]
TrainOption = Annotated[str, typer.Option(help="Examples to learn from: FILE.jsonl, or ID:SPLIT of a dataset.")]
ValOption = Annotated[
    str | None, typer.Option(help="Examples for validation, in the same form; those of --train by default.")
]
InputsOption = Annotated[str, typer.Option(help="Input fields of the program, such as question,context.")]

# Program

LMOption = Annotated[
    list[str] | None,
    typer.Option(
        help="local/NAME, a .gguf file, provider/model, or module:name, for all agents or as AGENT=LM for one; "
        "repeatable. The program's LMs by default."
    ),
]
LMSettingOption = Annotated[
    list[str] | None, typer.Option("--lm-setting", help="NAME=VALUE for all LMs, such as max_tokens=100; repeatable.")
]
AdapterOption = Annotated[
    AdapterName | None, typer.Option(help="`plain` for small local models by default, otherwise `chat`.")
]
GroupOption = Annotated[
    list[str] | None,
    typer.Option("--group", help="AGENT=PREDICTOR,PREDICTOR for predictors that share one set of weights; repeatable."),
]
SharedWeightsFlag = Annotated[
    bool, typer.Option("--shared-weights", help="Train one set of weights for all predictors.")
]
FrozenOption = Annotated[str | None, typer.Option(help="Agents that are not trained, such as judge,opponent.")]

# Runs and repairs

IterationsOption = Annotated[int, typer.Option(help="Number of rounds of collecting and training.")]
ThresholdOption = Annotated[float, typer.Option(help="Minimum reward of a success.")]
SamplesOption = Annotated[int, typer.Option(help="Number of runs per example.")]
TemperatureOption = Annotated[float, typer.Option(help="Temperature of all samples after the first.")]
UntilSolvedFlag = Annotated[bool, typer.Option("--until-solved", help="Sample an example up to its first success.")]
DemosOption = Annotated[
    str | None,
    typer.Option(help="`module:name` of demonstrations by predictor, or of a function that makes them."),
]
RepairOption = Annotated[bool, typer.Option(help="Repair failed runs.")]
CriticOption = Annotated[str | None, typer.Option(help="LM that gives feedback; the agent's own by default.")]
MaxRepairsOption = Annotated[int | None, typer.Option(help="Maximum number of failed runs to repair per iteration.")]

# Training

GateOption = Annotated[bool, typer.Option(help="Keep new weights only if the score does not fall.")]
MinGainOption = Annotated[float, typer.Option(help="Minimum gain in score that the gate requires.")]
CumulativeFlag = Annotated[bool, typer.Option("--cumulative", help="Train on the runs of all iterations so far.")]
MaxRowsOption = Annotated[int | None, typer.Option(help="Maximum number of training rows per predictor.")]
MaxPerExampleOption = Annotated[int, typer.Option(help="Maximum number of training rows per predictor and example.")]
TrainFromOption = Annotated[TrainFrom, typer.Option(help="Weights from which training starts.")]
TrainSettingOption = Annotated[
    list[str] | None,
    typer.Option("--train-setting", help="NAME=VALUE for the provider, such as n_epochs=3; repeatable."),
]
TrainPriceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="US dollars per million trained tokens of hosted fine-tuning; --train-setting is then for such jobs only.",
    ),
]

# Limits

BudgetCallsOption = Annotated[int | None, typer.Option(help="Maximum number of LM calls.")]
BudgetTokensOption = Annotated[int | None, typer.Option(help="Maximum number of tokens.")]
BudgetUSDOption = Annotated[float | None, typer.Option("--budget-usd", help="Maximum cost in US dollars.")]
BudgetSecondsOption = Annotated[float | None, typer.Option(help="Maximum wall time in seconds.")]
RetriesOption = Annotated[int, typer.Option(help="Number of retries of a failed LM call.")]
CallTimeoutOption = Annotated[float, typer.Option(help="Time limit of one LM call in seconds.")]
RunTimeoutOption = Annotated[float, typer.Option(help="Time limit of one run of the program in seconds.")]
MaxUnfinishedOption = Annotated[int, typer.Option(help="Number of examples per stage that may have no result.")]
ProcessesOption = Annotated[int, typer.Option(help="Number of processes that run the program.")]
NumThreadsOption = Annotated[int | None, typer.Option(help="Number of parallel runs; DSPy's setting by default.")]

# Output

RunDirOption = Annotated[Path | None, typer.Option(help="Run directory; `runs/compile-NAME-seed-N` by default.")]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="Folder for the trained program; `checkpoint` in the run directory by default.")
]
LibraryOption = Annotated[
    str | None, typer.Option(help="File or URL of the experience library; a file in the run directory by default.")
]
AcceptChangesOption = Annotated[
    str | None, typer.Option(help="Parts that may differ from the run to resume, as its error names them.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of sampling and training.")]
MLflowOption = Annotated[bool, typer.Option(help="Write the run to MLflow.")]
DryRunFlag = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan without calling an LM or writing anything.")
]
