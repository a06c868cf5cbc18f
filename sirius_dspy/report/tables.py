"""A report as tables of texts, the same ones for Markdown and HTML; a table without rows is left out."""

from __future__ import annotations

from collections.abc import Iterator

from sirius_dspy.optimizer.results import (
    AgentResult,
    CompileResult,
    HeldOutScores,
    IterationResult,
    TrialResult,
    score_interval,
)
from sirius_dspy.report.contents import Report
from sirius_dspy.report.experience import FUNNEL, Experience
from sirius_dspy.report.numbers import (
    format_count,
    format_counts,
    format_flag,
    format_interval,
    format_losses,
    format_score,
    format_seconds,
    format_share,
)
from sirius_dspy.report.spending import agent_cost_table, stage_table
from sirius_dspy.report.table import Table
from sirius_dspy.running.standing import floor_of
from sirius_dspy.stats import wilson_interval


def tables(report: Report) -> list[Table]:
    """All tables that have rows."""
    results, in_percent = report.results, report.is_in_percent
    made = [score_table(results, in_percent=in_percent)]
    if report.test is not None:
        made.append(held_out_table(report.test, in_percent=in_percent))
    made += [gate_table(results, in_percent=in_percent), agent_table(results), credit_table(results)]
    if report.experience is not None:
        made += [growth_table(report.experience), funnel_table(report.experience)]
    else:
        made += [repair_table(results), repair_agent_table(results)]
    made += [critic_table(results), stage_table(results), agent_cost_table(results)]
    return [table for table in made if table.rows]


# Scores


def score_table(results: CompileResult, *, in_percent: bool) -> Table:
    """The score of each iteration on the valset."""
    rows = [
        (
            str(entry.iteration),
            format_score(entry.score, in_percent=in_percent),
            format_interval(entry.interval, in_percent=in_percent),
            format_count(entry.num_val),
        )
        for entry in results.iterations
    ]
    header = ("iteration", "score", "95 % interval", "examples")
    note = "Mean reward on the validation examples. Iteration 0 is the student as it came. The intervals are Wilson's."
    return Table("score", "Validation score", header, tuple(rows), note)


def held_out_table(test: HeldOutScores, *, in_percent: bool) -> Table:
    """Scores on examples that the compile never saw, of the program and of it with single agents put back."""
    rows = [
        (
            entry.program,
            format_score(entry.score, in_percent=in_percent),
            format_interval(entry.bounds, in_percent=in_percent),
            format_count(entry.num_examples),
        )
        for entry in test.programs
    ]
    header = ("program", "score", "95 % interval", "examples")
    note = (
        "Scores on test examples that the compile never saw. If an agent is untrained, the drop of "
        "the score shows how much of the gain that agent learned."
    )
    return Table("test", "What each agent learned", header, tuple(rows), note)


def gate_table(results: CompileResult, *, in_percent: bool) -> Table:
    """What the gate saw, and what it kept."""
    floor = floor_of(trial.standing for entry in results.iterations for trial in entry.trials)
    rows = [
        (
            str(entry.iteration),
            _trial_label(trial, entry),
            format_score(trial.standing.mean(floor), in_percent=in_percent),
            format_interval(score_interval(trial.standing.mean(floor), entry.num_val), in_percent=in_percent),
            format_flag({agent for agent, is_kept in entry.promoted.items() if is_kept} == set(trial.agents)),
        )
        for entry in results.iterations
        for trial in entry.trials
    ]
    header = ("iteration", "weights", "score", "95 % interval", "kept")
    note = (
        "What the gate saw on the validation examples: the program with the new weights of some agents, in the order "
        "in which the gate tried them."
    )
    return Table("gates", "Promotion", header, tuple(rows), note)


def _trial_label(trial: TrialResult, entry: IterationResult) -> str:
    if len(trial.agents) > 1 and set(trial.agents) == set(entry.promoted):
        return "all new weights"
    return ", ".join(trial.agents)


def agent_table(results: CompileResult) -> Table:
    """The training sets and fine-tuning jobs."""
    rows = [
        (
            str(iteration),
            name,
            format_count(agent.rows),
            format_counts(agent.dropped),
            format_losses(agent.losses),
            format_flag(promoted),
            format_seconds(agent.seconds),
        )
        for iteration, name, agent, promoted in _agents(results)
    ]
    header = ("iteration", "agent", "rows", "dropped", "loss", "promoted", "seconds")
    note = "Training rows by agent and the steps left out, by reason. The loss is the first and the last of the job."
    return Table("agents", "Agents", header, tuple(rows), note)


def _agents(results: CompileResult) -> Iterator[tuple[int, str, AgentResult, bool | None]]:
    """Iteration, agent, what was done with it, and whether its new weights were kept."""
    for entry in results.iterations:
        for name, agent in entry.agents.items():
            yield entry.iteration, name, agent, entry.promoted.get(name)
    if results.unfinished is not None:
        for name, agent in results.unfinished.agents.items():
            yield results.unfinished.iteration, name, agent, None


def credit_table(results: CompileResult) -> Table:
    """How much the steps of each agent mattered."""
    rows = [
        (
            str(entry.iteration),
            name,
            format_count(found.steps),
            f"{found.mean:+.2f}",
            format_count(found.helped),
            format_count(found.harmed),
        )
        for entry in results.iterations
        for name, found in entry.credits.items()
    ]
    header = ("iteration", "agent", "steps", "mean credit", "helped", "harmed")
    note = (
        "How much more often runs succeed with an agent's recorded answer than with another of its answers to the same "
        "inputs: 0 means that it makes no difference what the agent writes."
    )
    return Table("credit", "Credit by replay", header, tuple(rows), note)


# Experience


def growth_table(experience: Experience) -> Table:
    """What each iteration added to the library."""
    rows = [
        (
            str(stats.iteration),
            stats.origin,
            format_count(stats.num_trajectories),
            format_count(stats.num_successes),
            format_count(stats.num_trajectories - stats.num_successes),
            format_share(stats.num_successes, stats.num_trajectories),
            format_interval(wilson_interval(stats.num_successes, stats.num_trajectories), in_percent=True),
        )
        for stats in sorted(experience.growth, key=lambda stats: stats.iteration)
    ]
    header = ("iteration", "origin", "runs", "succeeded", "failed", "share", "95 % interval")
    note = "Runs that each iteration added, by where they came from. Validation runs are kept, and never trained on."
    return Table("growth", "Experience library", header, tuple(rows), note)


def funnel_table(experience: Experience) -> Table:
    """How far failed runs came in repair."""
    header = ("iteration", "agent", *FUNNEL[:3], "leaked", *FUNNEL[3:])
    rows = [
        (str(funnel.iteration), funnel.agent, *(format_count(funnel.counts[name]) for name in header[2:]))
        for funnel in experience.funnels
    ]
    note = (
        "Failed runs that were tried, and how far they came: the critic advised, the agent answered anew, the program "
        "ran on from there, and it succeeded. Leaked edits gave the answer away and were refused. Agents are tried in "
        "turn until one helps, so a later agent sees fewer runs."
    )
    return Table("repair", "Repair", header, tuple(rows), note)


def critic_table(results: CompileResult) -> Table:
    """The fine-tuning jobs of the critic, and how it was compared with the one before."""
    rows = [
        (
            str(entry.iteration),
            format_count(entry.critic.rows),
            format_count(entry.critic.tried),
            format_share(entry.critic.repaired_before, entry.critic.tried),
            format_share(entry.critic.repaired, entry.critic.tried),
            format_flag(entry.critic.kept),
            format_seconds(entry.critic.seconds),
        )
        for entry in results.iterations
        if entry.critic is not None
    ]
    header = ("iteration", "rows", "failed runs tried", "repaired before", "repaired after", "kept", "seconds")
    note = (
        "The critic was fine-tuned on its advice that led to a repair. The critic before and the new one advised on "
        "the same failed runs, of examples that neither had learned from."
    )
    return Table("critic", "Critic", header, tuple(rows), note)


# The same from the results alone


def repair_table(results: CompileResult) -> Table:
    """Repairs by iteration."""
    rows = [
        (
            str(entry.iteration),
            format_count(entry.repair.tried),
            format_count(entry.repair.repaired),
            format_share(entry.repair.repaired, entry.repair.tried),
            format_counts(entry.repair.verdicts),
        )
        for entry in results.iterations
        if entry.repair.tried
    ]
    header = ("iteration", "failed runs tried", "repaired", "share", "verdicts")
    return Table("repair", "Repair", header, tuple(rows))


def repair_agent_table(results: CompileResult) -> Table:
    """Repair attempts by iteration and agent."""
    rows = [
        (str(entry.iteration), name, format_count(counts.get("tried", 0)), format_count(counts.get("repaired", 0)))
        for entry in results.iterations
        for name, counts in entry.repair.by_agent.items()
    ]
    return Table("repair-by-agent", "Repair by agent", ("iteration", "agent", "tried", "repaired"), tuple(rows))
