"""Fine-tuning jobs of OpenAI, and of servers with its API: side by side, and taken up again after a restart."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.redact import redact
from sirius_dspy.running.prompt import change_arguments
from sirius_dspy.training.hosted_job import OPENAI, HostedJob, address_of, client_of, is_hosted
from sirius_dspy.training.hosted_lm import retrained
from sirius_dspy.training.hosted_records import HostedRecord, estimate_epochs, estimate_tokens, read_record
from sirius_dspy.training.hosted_wait import Wait
from sirius_dspy.training.last_replies import learn_last_replies
from sirius_dspy.training.refusals import explain, explain_failure
from sirius_dspy.training.trainers import (
    OPENAI_LEAST_ROWS,
    ProviderTrainer,
    Trainer,
    TrainFrom,
    TrainingRequest,
    too_few_rows,
)
from sirius_dspy.trajectory import digest

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

TRAINING_PRICES = checks.optional(
    checks.table(
        "LM ids with US dollars per million trained tokens, such as `{'openai/x': 1.5}`", checks.number(0).fits
    )
)

_SETTINGS = {
    "hyperparameters": checks.optional(checks.table("a mapping of names to values, such as `{'n_epochs': 3}`")),
    "train_from": checks.choice("base", "current"),
    "poll_s": checks.number(above=0),
    "patience_s": checks.number(0),
    "validation": checks.number(0, below=1),
    "longest_s": checks.optional(checks.number(above=0)),
    "prices": TRAINING_PRICES,
}


class HostedTrainer(Trainer):
    """Fine-tunes `dspy.LM("openai/...")` through OpenAI's API, all agents at the same time.

    The id of each job is on disk before anything waits for it. So a compile that was killed, or interrupted, does not
    pay twice: the same call takes up the jobs that run or have ended meanwhile. While the server does not answer, jobs
    go on, and so does the waiting.

    An LM with an `api_base` is fine-tuned there, with the LM's `api_key`; otherwise at OpenAI, or at `OPENAI_BASE_URL`.
    Agents with other LMs are trained by `ProviderTrainer`: with a provider that writes weights on this machine, such as
    that of `LocalLM`, while the jobs run; with any other one, when it is their turn.

    Args:
        hyperparameters: Of the jobs, such as `{"n_epochs": 3}`; the server chooses by default.
        train_from: See `Trainer.train_from`.
        poll_s: Seconds between two looks at a job. The first pause is half a second, and each is twice as long as the
            one before it, up to this.
        patience_s: Seconds for which the server may be out of reach while jobs run.
        validation: Share of the rows of each agent that is held out, drawn by the seed. The server reports its loss on
            them, which is logged. 0 by default, since these rows are not trained on.
        longest_s: Seconds from the creation of a job after which it is an error that it has not ended; `None` waits for
            as long as it takes. The job goes on: a later call takes it up if it has ended, and a larger value waits
            for it again.
        prices: LM id, or the beginning of one, to US dollars per million trained tokens, e.g. `{"openai/gpt-4.1-nano":
            1.5}`; 0 is free. No table lists them, so without an entry the price is unknown. A fine-tuned model that is
            trained on has the price of its base. `plan` shows what jobs will cost, and `Budget(usd=...)` limits it.

    References:
        https://platform.openai.com/docs/api-reference/fine-tuning
    """

    def __init__(
        self,
        hyperparameters: Mapping[str, Any] | None = None,
        *,
        train_from: TrainFrom = "base",
        poll_s: float = 20.0,
        patience_s: float = 1800.0,
        validation: float = 0.0,
        longest_s: float | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        self.hyperparameters = hyperparameters
        self.train_from = train_from
        self.poll_s = poll_s
        self.patience_s = patience_s
        self.validation = validation
        self.longest_s = longest_s
        self._prices = prices  # private, since prices do not change what a compile does

    @property
    def _others(self) -> ProviderTrainer:
        return ProviderTrainer(train_from=self.train_from)

    def check(self, agent: str, lm: dspy.LM) -> None:
        """See `Trainer.check`; asks the server whether this key may fine-tune, which costs nothing."""
        checks.check("HostedTrainer", {**vars(self), "prices": self._prices}, _SETTINGS)
        if not is_hosted(lm):
            self._others.check(agent, lm)
            return
        import openai

        try:
            client_of(lm).fine_tuning.jobs.list(limit=1)
        except openai.OpenAIError as error:
            raise UnpreparedProgramError(
                f"Agent {agent!r} cannot be trained with {lm.model!r} at {address_of(lm)!r}: {explain(error)} "
                "Otherwise give the agent a `sirius_dspy.LocalLM(...)`, or "
                f"freeze it with `SiriuS(frozen=[{agent!r}])`."
            ) from error

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """See `Trainer.check_rows`; OpenAI's own server needs ten."""
        if not is_hosted(lm):
            self._others.check_rows(agent, lm, num_rows)
            return
        left = num_rows - self._num_held_out(num_rows)
        if left < (least := OPENAI_LEAST_ROWS if address_of(lm) == OPENAI else 1):
            raise too_few_rows(agent, left, f"the server at {address_of(lm)!r}", least)

    def trains_on_images(self, lm: dspy.LM) -> bool:
        """See `Trainer.trains_on_images`."""
        return is_hosted(lm) or self._others.trains_on_images(lm)

    def trains_on_tools(self, lm: dspy.LM) -> bool:
        """See `Trainer.trains_on_tools`; OpenAI's format has tool calls, and a server refuses what it cannot train."""
        return is_hosted(lm) or self._others.trains_on_tools(lm)

    def price(self, lm: dspy.LM) -> float | None:
        """See `Trainer.price`; what a server charges, if anything, only its owner knows."""
        if not is_hosted(lm):
            return self._others.price(lm)
        ids, prices = (lm.model, f"openai/{_trained_model(lm).removeprefix('ft:')}"), self._prices or {}
        names = [name for name in prices if any(id.startswith(name) for id in ids)]
        return prices[max(names, key=len)] if names else None

    def num_epochs(self, lm: dspy.LM, num_rows: int) -> int:
        """See `Trainer.num_epochs`; estimated if the server chooses."""
        return _epochs(self._job_settings(lm)) or estimate_epochs(num_rows - self._num_held_out(num_rows))

    def trained_tokens(self, request: TrainingRequest) -> int:
        """See `Trainer.trained_tokens`; a token is taken to be four characters."""
        if not is_hosted(request.lm):
            return self._others.trained_tokens(request)
        record = self._known(request)
        if record.trained_tokens is not None:
            return record.trained_tokens
        return record.tokens * (record.epochs or estimate_epochs(record.rows))

    def has_begun(self, request: TrainingRequest) -> bool:
        """See `Trainer.has_begun`."""
        if not is_hosted(request.lm):
            return self._others.has_begun(request)
        record = self._known(request)
        return bool(record.job) and not record.is_denied

    def order(self, requests: Sequence[TrainingRequest]) -> list[TrainingRequest]:
        """See `Trainer.order`; hosted jobs come last."""
        return sorted(self._others.order(requests), key=lambda request: is_hosted(request.lm))

    def train(self, request: TrainingRequest) -> dspy.LM:
        """See `Trainer.train`."""
        return next(self.train_all([request]))

    def train_all(self, requests: Sequence[TrainingRequest]) -> Iterator[dspy.LM]:
        """See `Trainer.train_all`. All hosted jobs are started before anything waits, or trains on this machine."""
        for request in requests:
            self.check_rows(request.agent, request.lm, len(request.rows))
        hosted = self.start_all([request for request in requests if is_hosted(request.lm)])
        others = [request for request in requests if not is_hosted(request.lm)]
        here = self._others.train_all([request for request in others if _is_trained_here(request)])
        elsewhere = self._others.train_all([request for request in others if not _is_trained_here(request)])
        for request in requests:
            if is_hosted(request.lm):
                here = iter(list(here))
                yield next(hosted)
            else:
                yield next(here if _is_trained_here(request) else elsewhere)

    def start_all(self, requests: Sequence[TrainingRequest]) -> Iterator[dspy.LM]:
        """Start hosted jobs, and return what waits for them, one after another.

        Raises:
            TrainingError: A job could not be started. Those before it go on, and the next call takes them up.
        """
        return map(self._finish, [self._start(request) for request in requests])

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """See `Trainer.restore`."""
        return retrained(lm, model) if is_hosted(lm) else self._others.restore(lm, model, workdir)

    # One job

    def _start(self, request: TrainingRequest) -> HostedJob:
        """Upload the rows and create the job, unless an earlier call did."""
        import openai

        settings = self._job_settings(request.lm)
        rows, held_out = self._split(request)
        job = HostedJob(request, client_of(request.lm), self._record(request, rows, held_out, settings))
        record = job.record
        job.read()
        try:
            if record.is_denied:
                job.find_denied()
            if record.file and not record.job:
                record.job = job.find()  # the last call may have been killed before it read the answer
            if held_out and not record.validation:
                record.validation = job.upload(held_out, f"{job.suffix}-validation.jsonl")
                job.write()
            if not record.file:
                record.file = job.upload(rows, f"{job.suffix}.jsonl")
                job.write()
            if not record.job:
                record.created = time.time()
                job.write()
                record.job = job.create(settings)
        except (openai.OpenAIError, ValueError) as error:
            raise job.failure(explain(error)) from error
        job.write()
        text = "Job %s of agent %r at %s: %d rows, some %d tokens per epoch."
        logger.info(text, record.job, request.agent, record.address, record.rows, record.tokens)
        return job

    def _split(self, request: TrainingRequest) -> tuple[list[Row], list[Row]]:
        """Return the rows to train on, and those that are held out."""
        rows = [{**row, "messages": _as_dspy_sends_them(row["messages"])} for row in learn_last_replies(request.rows)]
        places = random.Random(request.seed).sample(range(len(rows)), self._num_held_out(len(rows)))
        held_out = set(places)
        return [row for place, row in enumerate(rows) if place not in held_out], [rows[place] for place in places]

    def _num_held_out(self, num_rows: int) -> int:
        return min(math.ceil(self.validation * num_rows), max(num_rows - 1, 0))

    def _record(
        self, request: TrainingRequest, rows: list[Row], held_out: list[Row], settings: dict[str, Any]
    ) -> HostedRecord:
        model, address = _trained_model(request.lm), address_of(request.lm)
        return HostedRecord(
            key=digest([rows, held_out, model, settings, request.seed, address]),
            agent=request.agent,
            model=model,
            address=redact(address),
            rows=len(rows),
            tokens=estimate_tokens(rows),
            epochs=_epochs(settings),
            created=time.time(),
        )

    def _known(self, request: TrainingRequest) -> HostedRecord:
        """Return the record of a job as an earlier call left it, or as it will begin."""
        fresh = self._record(request, *self._split(request), self._job_settings(request.lm))
        found = read_record(request.workdir)
        return found if found is not None and found.key == fresh.key else fresh

    def _job_settings(self, lm: dspy.LM) -> dict[str, Any]:
        return {**lm.train_kwargs, **(self.hyperparameters or {})}

    def _finish(self, job: HostedJob) -> dspy.LM:
        """Wait for the end of a job, and return the new LM."""
        try:
            ended = Wait(job, self.poll_s, self.patience_s, self.longest_s).until_end()
        except KeyboardInterrupt:
            text = (
                "Job %s goes on at the server. The same `compile` takes it up; `sirius-dspy jobs` shows or cancels it."
            )
            logger.warning(text, job.record.job)
            raise
        if ended.status != "succeeded" or not ended.fine_tuned_model:
            job.forget()  # so that the next call starts another one
            reason = explain_failure(ended.error.code, ended.error.message) if ended.error else ""
            raise job.failure(f"it ended as {ended.status!r}. {reason}".strip())
        is_count = checks.whole(0).fits(ended.trained_tokens)
        job.record.trained_tokens = ended.trained_tokens if is_count else None  # the estimate then counts
        job.write()
        logger.info("Job %s was trained on %s tokens, over all epochs.", job.record.job, ended.trained_tokens)
        return retrained(job.request.lm, f"openai/{ended.fine_tuned_model.removeprefix('openai/')}")


def _trained_model(lm: dspy.LM) -> str:
    """Return the server's id of the model that is trained on."""
    return (lm.finetuning_model or lm.model).removeprefix("openai/")


def _epochs(settings: Mapping[str, Any]) -> int | None:
    """Return the number of epochs of a job; `None` if the server chooses."""
    epochs = settings.get("n_epochs")
    return epochs if isinstance(epochs, int) else None


def _is_trained_here(request: TrainingRequest) -> bool:
    """Return whether the weights will be on this machine: then nothing is paid for twice after a kill."""
    return bool(getattr(request.lm.provider, "writes_weights", False))


def _as_dspy_sends_them(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return messages whose prompt reads as DSPy sends it; the reply stays as it is."""
    return [*map(_as_dspy_sends_it, messages[:-1]), messages[-1]]


def _as_dspy_sends_it(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message of an adapter as DSPy sends it to OpenAI's API: results without names, arguments compact."""
    if message["role"] == "tool":
        return {name: part for name, part in message.items() if name != "name"}
    return change_arguments(message, _compact)


def _compact(arguments: str) -> str:
    return json.dumps(json.loads(arguments), separators=(",", ":"))
