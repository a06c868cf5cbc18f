"""The trajectories of a library as a Hugging Face dataset, a Parquet file, or JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirius_dspy.library.schema import escape_name
from sirius_dspy.library.writing import split_batches
from sirius_dspy.trajectory import Step, Trajectory

if TYPE_CHECKING:
    import datasets

Read = Callable[[], Iterator[Trajectory]]
"""Streams the trajectories to export, from the first one at each call."""

STEP_COLUMNS = {
    "trajectory": "string",
    "run": "string",
    "iteration": "int64",
    "sample": "int64",
    "seed": "int64",
    "origin": "string",
    "parent": "string",
    "edited": "int64",
    "example_key": "string",
    "program": "string",
    "reward": "float64",
    "agent_rewards": "string",
    "prediction": "string",
    "position": "int64",
    "predictor": "string",
    "occurrence": "int64",
    "lm": "string",
    "source": "string",
    "inputs": "string",
    "outputs": "string",
    "others": "string",
    "failure": "string",
    "taught": "bool",
    "num_demos": "int64",
    "prompt": "string",
    "finish": "string",
    "calls": "int64",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "seconds": "float64",
}
"""Columns of `to_dataset` and `to_parquet`, and their types.

`taught` tells whether the step may become a training row, which the steps before a repaired one may not. The columns
`agent_rewards`, `prediction`, `inputs`, `outputs`, `others`, `failure` and `prompt` hold JSON.
"""


def build_dataset(read: Read, state: str, cache_dir: str | Path | None) -> datasets.Dataset:
    """Return a dataset with one row per step, on disk, not in memory.

    Args:
        read: Streams the trajectories. It is pickled.
        state: Changes when `read` may yield other trajectories: `datasets` serves from its cache what equal arguments
            made.
        cache_dir: Where `datasets` keeps its Arrow files; `None` for its own cache.
    """
    import datasets

    if next(_step_records(read), None) is None:  # `from_generator` cannot make an empty one
        return datasets.Dataset.from_dict({name: [] for name in STEP_COLUMNS}, features=_step_features())
    return datasets.Dataset.from_generator(
        _step_records,
        features=_step_features(),
        cache_dir=None if cache_dir is None else str(cache_dir),
        gen_kwargs={"read": read, "state": state},
    )


def write_parquet(read: Read, path: str | Path) -> int:
    """Write one row per step into a Parquet file, and return the number of rows."""
    import pyarrow
    import pyarrow.parquet

    schema = _step_features().arrow_schema
    num_rows = 0
    with whole_file(path) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        for batch in split_batches(_step_records(read)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
            num_rows += len(batch)
    return num_rows


def write_jsonl(read: Read, path: str | Path) -> int:
    """Write one trajectory per line, with its id, and return the number of lines."""
    num_lines = 0
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for trajectory in read():
            file.write(json.dumps({"id": trajectory.id, **trajectory.to_dict()}) + "\n")
            num_lines += 1
    return num_lines


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which replaces `path` when all is written, and is deleted otherwise."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _step_features() -> datasets.Features:
    import datasets

    return datasets.Features({name: datasets.Value(kind) for name, kind in STEP_COLUMNS.items()})


def _step_records(read: Read, state: str = "") -> Iterator[dict[str, Any]]:
    """Yield one record per step; `state` only tells `datasets` that equal arguments may mean other rows."""
    for trajectory in read():
        shared = _trajectory_columns(trajectory)
        taught = {id(step) for step in trajectory.taught_steps}
        for position, step in enumerate(trajectory.steps):
            yield {**shared, **_step_columns(step), "position": position, "taught": id(step) in taught}


def _trajectory_columns(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "trajectory": trajectory.id,
        "run": escape_name(trajectory.run),
        "iteration": trajectory.iteration,
        "sample": trajectory.sample,
        "seed": trajectory.seed,
        "origin": trajectory.origin,
        "parent": trajectory.parent,
        "edited": trajectory.edited,
        "example_key": escape_name(trajectory.example_key),
        "program": escape_name(trajectory.program),
        "reward": float(trajectory.reward),
        "agent_rewards": json.dumps(dict(trajectory.rewards)),
        "prediction": json.dumps(trajectory.prediction),
    }


def _step_columns(step: Step) -> dict[str, Any]:
    return {
        "predictor": escape_name(step.predictor),
        "occurrence": step.occurrence,
        "lm": escape_name(step.lm),
        "source": step.source,
        "inputs": json.dumps(step.inputs),
        "outputs": None if step.outputs is None else json.dumps(step.outputs),
        "others": json.dumps(list(step.others)),
        "failure": step.failure and json.dumps(asdict(step.failure)),
        "num_demos": step.num_demos,
        "prompt": step.prompt,
        "finish": step.finish,
        "seconds": step.seconds,
        **asdict(step.usage),
    }
