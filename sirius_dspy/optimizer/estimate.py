"""How much work each stage of a compile is, told before it begins, from the program and from earlier runs of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import dspy

from sirius_dspy.credit.credit import Credit
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.rows import Entry
from sirius_dspy.optimizer.estimate_jobs import JobPlan
from sirius_dspy.optimizer.prices import price_of
from sirius_dspy.optimizer.ranges import SPREAD, Range
from sirius_dspy.program import predictor_names, program_fingerprint, signature_of
from sirius_dspy.repair.critic_training import CRITIC, LearningCritic
from sirius_dspy.trajectory import Origin, Usage

if TYPE_CHECKING:  # plans are made of estimates
    from sirius_dspy.optimizer.plan import Plan

RECENT = 1000
"""Earlier runs that are looked at, per stage and iteration."""

CHARACTERS_PER_TOKEN = 4.0
"""Of English text, in the tokenizers of most LMs."""

TEXT_TOKENS = 40
"""Tokens of a text that is not known yet, such as the reply of another agent."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take."""

    iteration: int
    stage: str
    units: Range
    """Runs of the program, failed runs to repair, or fine-tuning jobs."""
    calls: Range = field(default_factory=Range)
    tokens: Range = field(default_factory=Range)
    """Prompt and completion tokens."""
    seconds: Range | None = None
    """Wall time; `None` if nothing is known of it."""
    usd: Range | None = None
    """US dollars for tokens and jobs; `None` if the price of an LM, or of training it, is unknown."""
    jobs: tuple[JobPlan, ...] = ()
    """Fine-tuning jobs that a server charges for."""


@dataclass(frozen=True)
class _PerRun:
    """What one run, or one repair with its reruns, takes."""

    calls: Range
    prompt: Range
    completion: Range
    seconds: float | None = None


class Estimator:
    """Estimates the stages of a plan.

    Args:
        plan: What is to be done.
        library: Earlier runs of the same program in it count more than anything else; it may hold none.
    """

    def __init__(self, plan: Plan, library: ExperienceLibrary | None) -> None:
        self.plan = plan
        self.library = library
        self._program = program_fingerprint(plan.student)
        self._threads = plan.settings.num_threads or dspy.settings.num_threads or 8
        self._prices = [price_of(lm.model, plan.prices) for lm in plan.start.values()]

    def stages(self) -> Iterable[StagePlan]:
        """The stages in their order."""
        settings, num_val = self.plan.settings, len(self.plan.unique_valset)
        yield self._runs(0, "evaluate", Range.exactly(num_val), self._per_run("validation", 0))
        evaluations = 1 if settings.gate is None else settings.gate.max_evaluations(len(self.plan.trained))
        if settings.collect.warm_start:
            yield from self._learn(0, evaluations)
        for iteration in range(1, settings.iterations + 1):
            yield self._runs(iteration, "collect", self._num_rollouts(iteration), self._per_run("rollout", iteration))
            if settings.credit is not None:
                yield self._valuation(iteration, settings.credit)
            if settings.augmenter is not None:
                yield from self._repair(iteration, settings.augmenter.learning_critic())
            yield from self._learn(iteration, evaluations)

    def _repair(self, iteration: int, critic: LearningCritic | None) -> Iterable[StagePlan]:
        """Fine-tune the critic, if there is enough advice to learn from, and repair."""
        units = self._num_failed(iteration)
        if critic is not None and iteration > 1:
            jobs = self._jobs({CRITIC: critic.lm}, iteration)
            yield StagePlan(iteration, "train critic", Range(0, 1, 1), usd=_usd_of_jobs(jobs), jobs=jobs)
            units += units * Range(0, critic.training.held_out, critic.training.held_out)  # both critics repair these
        yield self._runs(iteration, "repair", units, self._per_repair(iteration))

    def _learn(self, iteration: int, evaluations: int) -> Iterable[StagePlan]:
        """Fine-tune, and let the gate choose."""
        num_val = len(self.plan.unique_valset)
        jobs = self._jobs({agent: self.plan.start[agent] for agent in self.plan.trained}, iteration)
        units = Range.exactly(len(self.plan.trained))
        yield StagePlan(iteration, "train", units, usd=_usd_of_jobs(jobs), jobs=jobs)
        units = Range(num_val, num_val, num_val * evaluations)
        yield self._runs(iteration, "evaluate", units, self._per_run("validation", iteration))

    def _runs(self, iteration: int, stage: str, units: Range, each: _PerRun) -> StagePlan:
        prompt, completion = units * each.prompt, units * each.completion
        seconds = None if each.seconds is None else units * Range.around(each.seconds / self._threads)
        return StagePlan(
            iteration, stage, units, units * each.calls, prompt + completion, seconds, self._usd(prompt, completion)
        )

    def _usd(self, prompt: Range, completion: Range) -> Range | None:
        """Dollars, where it is not known which LM answers what: from the cheapest to the dearest."""
        prices = [price for price in self._prices if price is not None]
        if not prices or len(prices) < len(self._prices):
            return None
        mean = [sum(part) / len(prices) for part in zip(*prices, strict=True)]
        least, most = map(min, zip(*prices, strict=True)), map(max, zip(*prices, strict=True))
        bounds = [(list(least), prompt.low, completion.low), (mean, prompt.likely, completion.likely)]
        bounds.append((list(most), prompt.high, completion.high))
        return Range(*((price[0] * tokens + price[1] * written) / 1e6 for price, tokens, written in bounds))

    def _jobs(self, lms: Mapping[str, dspy.LM], iteration: int) -> tuple[JobPlan, ...]:
        """The jobs of some agents that a server charges for."""
        prices = {agent: self.plan.settings.trainer.price(lm) for agent, lm in lms.items()}
        return tuple(self._job(agent, lms[agent], price, iteration) for agent, price in prices.items() if price != 0)

    def _job(self, agent: str, lm: dspy.LM, price: float | None, iteration: int) -> JobPlan:
        each = self._per_run("validation", iteration)  # as in training, without demonstrations
        if agent in self.plan.trained:
            rows, tokens = self._num_rows(agent, iteration), _per_call(each.prompt + each.completion, each.calls)
        else:  # the critic reads a whole run
            rows, tokens = self._num_advice(iteration), (each.prompt + each.completion) * Range(0.25, 1, 4)
        epochs = self.plan.settings.trainer.num_epochs(lm, max(1, round(rows.high)))
        return JobPlan(agent, lm.model, rows, tokens, epochs, price)

    def _num_rows(self, agent: str, iteration: int) -> Range:
        """Rows of an agent: at most what the curator keeps if every run succeeds."""
        settings, predictors = self.plan.settings, self.plan.agents[agent]
        collect, curator = settings.collect, settings.curator
        is_shown = collect.warm_start and (iteration == 0 or collect.keep_demos)
        demos = sum(len((collect.demos or {}).get(name, ())) for name in predictors) if is_shown else 0
        if iteration == 0:
            return Range(0, demos, demos)
        number = len(self.plan.unique_trainset) if curator.cumulative else self._num_examples(iteration)
        most, rate = curator.most_rows(len(predictors), number), self._success_rate(iteration)
        runs = number * min(collect.samples, curator.max_per_example) * len(predictors)
        return Range(0, min(most, runs * (0.5 if rate is None else rate)) + demos, most + demos)

    def _num_advice(self, iteration: int) -> Range:
        """Rows of the critic: at most the advice on every failed run before."""
        augmenter = self.plan.settings.augmenter
        critic = None if augmenter is None else augmenter.learning_critic()
        failed = sum((self._num_failed(number) for number in range(1, iteration)), Range())
        cap = math.inf if critic is None or critic.training.max_rows is None else critic.training.max_rows
        return Range(0, min(failed.likely, cap), min(failed.high, cap))

    def _valuation(self, iteration: int, credit: Credit) -> StagePlan:
        """All steps of the successful runs, and of the failed ones that will be repaired."""
        rolled, each = self._num_rollouts(iteration), self._per_run("rollout", iteration)
        rate = self._success_rate(iteration)
        runs = Range(0, rolled.likely / 2, rolled.high) if rate is None else rolled * Range.around(rate)
        if credit.order and self.plan.settings.augmenter is not None:
            runs += self._num_failed(iteration)
        most = math.inf if credit.max_runs is None else credit.max_runs * 2
        runs = Range(min(runs.low, most), min(runs.likely, most), min(runs.high, most))
        counts = [credit.num_calls(steps) for steps in (1.0, each.calls.likely, each.calls.high)]
        units, calls = (runs * Range(*part) for part in zip(*counts, strict=True))
        calls = Range(0, calls.likely, calls.high)  # a cache may answer
        prompt, completion = (calls * _per_call(part, each.calls) for part in (each.prompt, each.completion))
        usd = self._usd(prompt, completion)
        return StagePlan(iteration, "credit", units, calls, prompt + completion, usd=usd)

    def _num_examples(self, iteration: int) -> int:
        """Examples that an iteration runs."""
        number, schedule = len(self.plan.unique_trainset), self.plan.settings.collect.schedule
        return number if schedule is None else schedule.num_chosen(number, iteration)

    def _num_rollouts(self, iteration: int) -> Range:
        number, collect = self._num_examples(iteration), self.plan.settings.collect
        most = number * collect.samples
        if not collect.until_solved:
            return Range.exactly(most)
        solved = self._success_rate(iteration)
        if solved is None:
            return Range(number, (number + most) / 2, most)
        likely = number * sum((1 - solved) ** sample for sample in range(collect.samples))
        return Range(number, likely, most)

    def _num_failed(self, iteration: int) -> Range:
        """Examples that no sample solves: by the success rate of earlier runs, or anything between none and all."""
        number = self._num_examples(iteration)
        augmenter, unsolved = self.plan.settings.augmenter, self._unsolved(iteration)
        most = number if augmenter is None or augmenter.max_repairs is None else min(number, augmenter.max_repairs)
        if unsolved is None:
            return Range(0, min(most, number / 2), most)
        likely = min(most, number * unsolved)
        return Range(likely * (1 - SPREAD), likely, min(most, likely * (1 + SPREAD)))

    # From earlier runs

    def _success_rate(self, iteration: int) -> float | None:
        runs = self._earlier("rollout", iteration)
        return sum(run.succeeded(self.plan.settings.threshold) for run in runs) / len(runs) if runs else None

    def _unsolved(self, iteration: int) -> float | None:
        """Share of examples without a success; earlier compiles may have drawn another number of samples."""
        by_example: dict[tuple[str, str], list[bool]] = {}
        for run in self._earlier("rollout", iteration):
            if run.sample < self.plan.settings.collect.samples:
                key = run.run, run.example_key
                by_example.setdefault(key, []).append(run.succeeded(self.plan.settings.threshold))
        return sum(not any(results) for results in by_example.values()) / len(by_example) if by_example else None

    def _earlier(self, origin: Origin, iteration: int) -> Sequence[Entry]:
        """Earlier runs at the same iteration; later ones than there were are like the last one."""
        if self.library is None:
            return []
        for number in range(iteration, -1 if origin == "validation" else 0, -1):
            entries = self.library.entries(program=self._program, origin=origin, iteration=number, limit=RECENT)
            if runs := list(entries):
                return runs
        return []

    def _per_run(self, origin: Origin, iteration: int) -> _PerRun:
        runs = self._earlier(origin, iteration)
        if not runs and origin == "validation":
            runs = self._earlier("rollout", iteration)
        return _mean(runs) if runs else self._from_program(with_demos=origin == "rollout" and iteration == 1)

    def _per_repair(self, iteration: int) -> _PerRun:
        """A repair with its reruns."""
        if self.library is not None:
            for number in range(iteration, 0, -1):
                if (found := self._earlier_repairs(self.library, number)) is not None:
                    return found
        once = self._from_program(with_demos=iteration == 1)
        augmenter, steps = self.plan.settings.augmenter, len(predictor_names(self.plan.student))
        least, most = (0, 0) if augmenter is None else augmenter.num_calls(steps)
        calls = Range(least, (least + most) / 2, most)
        share = Range(*(value / steps for value in (calls.low, calls.likely, calls.high)))
        # A critic reads the whole run, so its prompts are longer than those of the agents.
        return _PerRun(calls, once.prompt * share * Range(1.0, 2.0, 4.0), once.completion * share)

    def _earlier_repairs(self, library: ExperienceLibrary, iteration: int) -> _PerRun | None:
        reruns = [*self._earlier("repair", iteration), *self._earlier("confirmation", iteration)]
        runs = {run.run for run in self._earlier("rollout", iteration)}
        repairs = [
            item for run in sorted(runs) for item in islice(library.repairs(run=run, iteration=iteration), RECENT)
        ]
        if not repairs:
            return None
        usage = sum((item.usage for item in repairs), Usage()) + sum((run.usage for run in reruns), Usage())
        number = len(repairs)
        parts = (usage.calls, usage.prompt_tokens, usage.completion_tokens)
        calls, prompt, completion = (Range.around(part / number) for part in parts)
        return _PerRun(calls, prompt, completion)

    # From the program alone

    def _from_program(self, *, with_demos: bool) -> _PerRun:
        """Each predictor once, which a loop or a branch makes wrong; prompts as the adapter writes them."""
        adapter = dspy.settings.adapter or dspy.ChatAdapter()
        collect = self.plan.settings.collect
        demos = (collect.demos or {}) if with_demos and not collect.warm_start else {}
        prompt = completion = 0.0
        predictors = predictor_names(self.plan.student)
        for name, predictor in predictors.items():
            signature, example = signature_of(predictor), self.plan.trainset[0]
            known = {**example.toDict()}
            inputs = {
                field: known.get(field, "x" * int(TEXT_TOKENS * CHARACTERS_PER_TOKEN))
                for field in signature.input_fields
            }
            shown = list(demos.get(name, predictor.demos))
            messages = adapter.format(signature, shown, inputs)
            prompt += sum(len(str(message.get("content"))) for message in messages) / CHARACTERS_PER_TOKEN
            completion += TEXT_TOKENS * len(signature.output_fields)
        return _PerRun(
            Range(1, len(predictors), 4 * len(predictors)),
            Range(prompt / 2, prompt, prompt * 4),
            Range(completion / 8, completion / 2, completion * 4),
        )


def _usd_of_jobs(jobs: Iterable[JobPlan]) -> Range | None:
    """Nothing for jobs on this machine; `None` if the price of one is unknown."""
    parts = [job.usd for job in jobs]
    known = [usd for usd in parts if usd is not None]
    return sum(known, Range()) if len(known) == len(parts) else None


def _per_call(tokens: Range, calls: Range) -> Range:
    """Tokens of one call; the bounds are wide, because runs may have few long calls or many short ones."""
    likely = tokens.likely / max(calls.likely, 1.0)
    return Range(likely / 4, likely, likely * 4)


def _mean(runs: Sequence[Entry]) -> _PerRun:
    usage = sum((run.usage for run in runs), Usage())
    parts = (usage.calls, usage.prompt_tokens, usage.completion_tokens)
    seconds = sum(run.seconds for run in runs) / len(runs)
    calls, prompt, completion = (Range.around(part / len(runs)) for part in parts)
    return _PerRun(calls, prompt, completion, seconds)


def total(stages: Iterable[StagePlan]) -> Mapping[str, Range | None]:
    """Calls, tokens, seconds and dollars of all stages; `None` where those of some stage are unknown."""
    parts = list(stages)
    sums: dict[str, Range | None] = {
        "calls": sum((part.calls for part in parts), Range()),
        "tokens": sum((part.tokens for part in parts), Range()),
    }
    for name in ("seconds", "usd"):
        values = [getattr(part, name) for part in parts]
        sums[name] = None if None in values else sum(values, Range())
    return sums
