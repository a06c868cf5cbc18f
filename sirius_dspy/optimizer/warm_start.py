"""Warm start: fine-tune each agent on its demonstrations before the first iteration, instead of showing them.

A demonstration becomes a run with one step in the library, of origin `demonstration`. Its row has the prompt of the
program, without demonstrations, like every other row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import dspy

from sirius_dspy.optimizer.session import Session
from sirius_dspy.plain import to_plain
from sirius_dspy.program import predictor_names, program_fingerprint, signature_of
from sirius_dspy.running.demos import demonstrated_outputs
from sirius_dspy.training.curate import Curator, TrainingSet, shuffle_rows
from sirius_dspy.trajectory import Step, Trajectory, example_key

ALL = Curator(max_per_example=1)
"""Demonstrations were chosen by the user, so none is left out."""


def store_demonstrations(session: Session) -> None:
    """Add the demonstrations of trained agents to the library; those that are there already are not added again."""
    for example, trajectory in _demonstrations(session):
        session.library.add(trajectory, example)


def demonstration_rows(session: Session) -> dict[str, TrainingSet]:
    """Write the rows of the stored demonstrations."""
    return ALL.curate(
        session.weights.program,
        session.library.trajectories(run=session.run, origin="demonstration"),
        session.plan.trained,
        threshold=session.settings.threshold,
        seed=session.settings.seed,
    )


def add_demonstrations(session: Session, sets: Mapping[str, TrainingSet], seed: int) -> dict[str, TrainingSet]:
    """Add the demonstrations to the rows that an iteration gave. An agent without any such row gets none.

    Training it on its demonstrations again would only repeat the warm start.
    """
    shown = demonstration_rows(session)
    return {
        agent: _merge(shown[agent], rows, seed) if rows.rows and agent in shown else rows
        for agent, rows in sets.items()
    }


def _merge(shown: TrainingSet, rows: TrainingSet, seed: int) -> TrainingSet:
    new = {row.id: row for row in (*rows.rows, *shown.rows)}
    return TrainingSet(rows.agent, shuffle_rows([sorted(new.values(), key=lambda row: row.id), []], seed), rows.dropped)


def _demonstrations(session: Session) -> Iterator[tuple[dspy.Example, Trajectory]]:
    program = program_fingerprint(session.weights.program)
    predictors = predictor_names(session.weights.program)
    trained = {name for names in session.plan.trained.values() for name in names}
    for name, demos in (session.settings.collect.demos or {}).items():
        if name not in trained:
            continue
        signature = signature_of(predictors[name])
        for demo in demos:
            values = {field: demo[field] for field in signature.fields}
            example = dspy.Example(**values).with_inputs(*signature.input_fields)
            yield example, _run_of(session, name, program, signature, example)


def _run_of(
    session: Session, name: str, program: str, signature: type[dspy.Signature], example: dspy.Example
) -> Trajectory:
    outputs = demonstrated_outputs(example, signature)
    return Trajectory(
        example_key=example_key(example),
        steps=(Step(name, 0, to_plain(example.inputs()), outputs, lm=""),),
        prediction=outputs,
        reward=session.settings.threshold,
        program=program,
        run=session.run,
        seed=session.settings.seed,
        origin="demonstration",
    )
