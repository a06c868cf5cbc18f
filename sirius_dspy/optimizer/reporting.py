"""From a session to its results."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from sirius_dspy.library.summary import Funnel, summarize
from sirius_dspy.optimizer.accounts import STAGE_OF
from sirius_dspy.optimizer.budget import Account
from sirius_dspy.optimizer.credit import credit_results
from sirius_dspy.optimizer.evaluate import Choice
from sirius_dspy.optimizer.records import Job
from sirius_dspy.optimizer.results import (
    AgentResult,
    CompileResult,
    CriticResult,
    Ended,
    IterationResult,
    RepairResult,
    TrialResult,
    UnfinishedIteration,
    UsageResult,
)
from sirius_dspy.optimizer.session import Session
from sirius_dspy.optimizer.spent import Ledger, Spent, add_to, cost_of
from sirius_dspy.running.standing import Standing, floor_of
from sirius_dspy.training.curate import TrainingSet
from sirius_dspy.trajectory import Usage


def first_result(session: Session, standing: Standing) -> IterationResult:
    """Iteration 0: the student as it came."""
    return IterationResult(
        iteration=0,
        score=standing.mean(),
        num_val=len(session.plan.valset),
        lms=session.plan.lms,
        standing=standing,
        stages=stage_usages(session.account, 0),
        seconds=stage_seconds(session.account, 0),
        chosen_in_forward=session.weights.chosen_in_forward,
    )


def iteration_result(
    session: Session,
    iteration: int,
    choice: Choice,
    jobs: Mapping[str, Job],
    sets: Mapping[str, TrainingSet],
    critic: CriticResult | None = None,
) -> IterationResult:
    """What an iteration did."""
    summary = summarize(
        session.library,
        session.run,
        iteration,
        threshold=session.settings.threshold,
        agents=session.plan.agents,
    )
    usages, seconds = _agent_usages(session, iteration), stage_seconds(session.account, iteration)
    agents = {
        agent: _agent_result(rows, jobs.get(agent), usages.get(agent, UsageResult())) for agent, rows in sets.items()
    }
    kept, standing = choice.kept, choice.standing
    score = standing.mean(floor_of([standing, *(entry.standing for entry in session.history)]))
    credits = credit_results(session, iteration)
    metrics = {
        "val/score": score,
        **{f"credit/{agent}": found.mean for agent, found in credits.items()},
        **_critic_metrics(critic),
        **summary.metrics(agents),
        **summary.costs(seconds),
    }
    return IterationResult(
        iteration=iteration,
        score=score,
        num_val=len(session.plan.valset),
        lms={agent: lm.model for agent, lm in (session.weights.current | kept).items()},
        standing=standing,
        promoted={agent: agent in kept for agent in jobs},
        trials=tuple(TrialResult(agents, standing) for agents, standing in choice.trials),
        metrics=metrics,
        agents=agents,
        repair=_repair_result(summary.repair),
        critic=critic,
        credits=credits,
        seconds=seconds,
        usage=_sum(usages.values()),
        stages=stage_usages(session.account, iteration),
        chosen_in_forward=session.weights.chosen_in_forward,
    )


def compile_result(session: Session, ended: Ended, reason: str) -> CompileResult:
    """What the compile did so far."""
    plan, spent = session.plan, session.account.spent()
    return CompileResult(
        run=session.run,
        run_dir=str(plan.run_dir.path),
        library=session.library.url,
        adapter=plan.identity["adapter"],
        seed=plan.settings.seed,
        threshold=float(plan.settings.threshold),
        agents={agent: tuple(names) for agent, names in plan.agents.items()},
        iterations=score_together(session.history),
        unfinished=unfinished_iteration(session.account, session.history),
        ended=ended,
        reason=reason,
        program=type(plan.student).__name__,
        num_train=len(plan.trainset),
        num_distinct=len(plan.unique_trainset),
        usage=usage_result(spent),
        seconds=spent.seconds,
    )


def score_together(history: Collection[IterationResult]) -> tuple[IterationResult, ...]:
    """The iterations with scores that compare: a broken run counts the same in all of them."""
    floor = floor_of(entry.standing for entry in history)
    return tuple(replace(entry, score=entry.standing.mean(floor)) for entry in history)


def unfinished_iteration(
    account: Account, history: Collection[IterationResult], jobs: Mapping[int, Mapping[str, Job]] | None = None
) -> UnfinishedIteration | None:
    """What is done beyond the finished iterations; `None` if nothing is.

    Args:
        account: What was spent.
        history: The finished iterations.
        jobs: Iteration to agent name to its finished fine-tuning job.
    """
    jobs = jobs or {}
    begun = {int(key.partition("/")[0]) for key in [*account.ledger, *account.seconds]} | set(jobs)
    number = max(begun, default=-1)
    if number <= max((entry.iteration for entry in history), default=-1):
        return None
    return UnfinishedIteration(
        iteration=number,
        agents={agent: _trained(AgentResult(rows=job.rows), job) for agent, job in jobs.get(number, {}).items()},
        stages=stage_usages(account, number),
        seconds=stage_seconds(account, number),
    )


def _agent_result(rows: TrainingSet, job: Job | None, usage: UsageResult) -> AgentResult:
    result = AgentResult(rows=len(rows.rows), dropped=dict(rows.dropped), usage=usage)
    return result if job is None else _trained(result, job)


def _trained(result: AgentResult, job: Job) -> AgentResult:
    losses = tuple(loss if math.isfinite(loss) else None for loss in job.losses)
    return replace(result, losses=losses, lm=job.lm, base=job.base, seconds=job.seconds)


def _repair_result(funnel: Funnel) -> RepairResult:
    return RepairResult(
        tried=funnel.tried,
        repaired=funnel.repaired,
        verdicts=funnel.verdicts,
        by_agent=funnel.by_agent,
        by_rung=funnel.by_rung,
        reliance=funnel.reliance,
        calls=funnel.usage.calls,
        prompt_tokens=funnel.usage.prompt_tokens,
        completion_tokens=funnel.usage.completion_tokens,
    )


def _critic_metrics(critic: CriticResult | None) -> dict[str, float]:
    if critic is None:
        return {}
    rates = {"critic/rate_before": critic.rate_before, "critic/rate": critic.rate}
    return {"critic/rows": float(critic.rows), **{name: rate for name, rate in rates.items() if rate is not None}}


def stage_usages(account: Account, iteration: int) -> dict[str, UsageResult]:
    """Stage to what servers counted in it."""
    keys = [key for key in account.ledger | account.jobs if key.startswith(f"{iteration}/")]
    return {key.partition("/")[2]: usage_result(account.spent(key)) for key in keys}


def stage_seconds(account: Account, iteration: int) -> dict[str, float]:
    """Stage to wall time."""
    noted = account.seconds.items()
    return {key.partition("/")[2]: value for key, value in noted if key.startswith(f"{iteration}/")}


def usage_result(spent: Spent) -> UsageResult:
    """The LM calls of what was spent."""
    return UsageResult(spent.calls, spent.prompt_tokens, spent.completion_tokens, spent.usd)


def _agent_usages(session: Session, iteration: int) -> dict[str, UsageResult]:
    """Agent to what its own calls took, in all runs and repairs of an iteration that were kept."""
    agent_of = {name: agent for agent, names in session.plan.agents.items() for name in names}
    by_agent: Ledger = {}
    for trajectory in session.library.trajectories(run=session.run, iteration=iteration, origin=tuple(STAGE_OF)):
        for step in trajectory.steps:
            add_to(by_agent, agent_of.get(step.predictor, step.predictor), step.lm, step.usage)
    for repair in session.library.repairs(run=session.run, iteration=iteration):
        for attempt in repair.attempts:
            agent = agent_of[attempt.predictor]
            add_to(by_agent, agent, session.weights.current[agent].model, attempt.usage)
    prices = session.plan.prices
    return {agent: _priced(by_model, prices) for agent, by_model in by_agent.items()}


def _priced(by_model: Mapping[str, Usage], prices: Mapping[str, tuple[float, float]]) -> UsageResult:
    total = sum(by_model.values(), Usage())
    usd = cost_of(by_model.items(), prices)
    return UsageResult(total.calls, total.prompt_tokens, total.completion_tokens, usd)


def _sum(parts: Collection[UsageResult]) -> UsageResult:
    money = [part.usd for part in parts if part.usd is not None]
    return UsageResult(
        sum(part.calls for part in parts),
        sum(part.prompt_tokens for part in parts),
        sum(part.completion_tokens for part in parts),
        sum(money) if len(money) == len(parts) else None,
    )
