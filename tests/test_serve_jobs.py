"""`sirius-dspy serve`: files and fine-tuning jobs, with OpenAI's own client over HTTP, and after a restart."""

from __future__ import annotations

import errno
import json
import threading
import time

import openai
import pytest

from sirius_dspy.errors import ServerError, TrainingError
from sirius_dspy.files import write_text
from sirius_dspy.server.run import Server
from sirius_dspy.server.settings import ServerSettings
from tests.serve_help import ROWS, FakeBackend, serving
from tests.wait import wait_until


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def client(tmp_path, backend):
    with serving(tmp_path, backend) as client:
        yield client


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """A server that only has to refuse."""
    with serving(tmp_path_factory.mktemp("idle")) as client:
        yield client


def upload(client, rows=ROWS, name="rows.jsonl"):
    lines = [json.dumps({"messages": row}) for row in rows]
    return client.files.create(file=(name, "\n".join(lines).encode()), purpose="fine-tune")


def start(client, **settings):
    settings.setdefault("training_file", upload(client).id)
    return client.fine_tuning.jobs.create(**{"model": "tiny", **settings})


def wait(client, job, status="succeeded"):
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == status)
    return client.fine_tuning.jobs.retrieve(job.id)


def ask(client, model):
    messages = [{"role": "user", "content": "Hello"}]
    return client.chat.completions.create(model=model, messages=messages).choices[0].message.content


# Files


def test_a_file_is_kept_listed_and_deleted(client):
    first, second = upload(client), upload(client, ROWS[:3], "other.jsonl")
    assert (second.filename, second.purpose, second.status) == ("other.jsonl", "fine-tune", "processed")
    assert [file.id for file in client.files.list()] == [second.id, first.id]
    assert client.files.retrieve(first.id) == first
    lines = client.files.content(first.id).read().splitlines()
    assert [json.loads(line)["messages"] for line in lines] == ROWS
    assert client.files.delete(first.id).deleted
    assert [file.id for file in client.files.list()] == [second.id]
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(first.id)


GOOD = json.dumps({"messages": ROWS[0]})
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}]


def tool_row(arguments='{"query": "Zürich"}', **settings):
    called = [{"id": "call_0", "type": "function", "function": {"name": "search", "arguments": arguments}}]
    reply = {"role": "assistant", "content": None, "tool_calls": called}
    return json.dumps({"messages": [ROWS[0][0], reply], **settings})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Line 3 is not valid JSON"),
        ("[" * 100_000, "Line 3 is not valid JSON"),
        ("[]", "Line 3 is not of the form"),
        ('{"messages": [], "functions": []}', "Line 3 is not of the form"),
        ('{"messages": []}', "Line 3 needs a prompt"),
        (json.dumps({"messages": ROWS[0][:1]}), "Line 3 needs a prompt"),
        (json.dumps({"messages": ROWS[0][1:]}), "Line 3 needs a prompt"),
        (json.dumps({"messages": [*ROWS[0], {"role": "tool", "content": "x"}]}), "message 3: expected the fields"),
        (json.dumps({"messages": [{"role": "bard", "content": "x"}, ROWS[0][1]]}), "message 1: the role"),
        (tool_row(tools=[{"type": "function"}]), "Line 3: .*tools.* is not a list"),
        (tool_row(tools=[]), "Line 3: .*tools.* is not a list"),
        (tool_row(tools=TOOLS, parallel_tool_calls=1), "Line 3: .*parallel_tool_calls.* is not true"),
        (tool_row(parallel_tool_calls=True), "Line 3: .*parallel_tool_calls.* is not true"),
        (tool_row(tools=TOOLS, arguments="[1]"), "Line 3, message 2: .*tool_calls.* is not a list"),
        (tool_row(tools=TOOLS, arguments={"query": "x"}), "Line 3, message 2: .*tool_calls.* is not a list"),
        (json.dumps({"messages": [{"role": "user", "content": []}, ROWS[0][1]]}), "Line 3, message 1: the content"),
        (json.dumps({"messages": [{"role": "user"}, ROWS[0][1]]}), "Line 3, message 1: expected the fields"),
        (json.dumps({"messages": [ROWS[0][0], {**ROWS[0][1], "weight": 0}]}), "the last reply has the weight 0"),
        (json.dumps({"messages": [{**ROWS[0][0], "weight": 0}, ROWS[0][1]]}), "message 1: only .* 'assistant'"),
        (json.dumps({"messages": [{"role": "user", "content": "\ud800"}, ROWS[0][1]]}), "message 1: the content"),
    ],
)
def test_a_line_that_cannot_be_trained_on_is_named(idle, line, problem):
    content = f"{GOOD}\n\n{line}\n{GOOD}\n".encode()
    with pytest.raises(openai.BadRequestError, match=problem) as caught:
        idle.files.create(file=("rows.jsonl", content), purpose="fine-tune")
    assert caught.value.code == "invalid_training_file"


def test_earlier_replies_of_a_chat_may_have_the_weight_zero(idle):
    chat = [ROWS[0][0], {**ROWS[0][1], "weight": 0}, *ROWS[1]]
    content = json.dumps({"messages": chat}).encode()
    assert idle.files.create(file=("rows.jsonl", content), purpose="fine-tune").status == "processed"


def test_rows_with_tools_are_trained_on_where_the_model_writes_them(client, backend):
    row = json.loads(tool_row(tools=TOOLS, parallel_tool_calls=False))
    result = {"role": "tool", "tool_call_id": "call_0", "name": "search", "content": "a town"}
    longer = {**row, "messages": [*row["messages"], result, *ROWS[1]]}
    content = "\n".join([GOOD, "", json.dumps(row), json.dumps(longer)]).encode()
    file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id
    with pytest.raises(openai.BadRequestError, match=r"Line 3 of 'file-.*chat template of 'tiny'") as refused:
        client.fine_tuning.jobs.create(model="tiny", training_file=file)
    assert refused.value.code == "invalid_training_file"
    job = client.fine_tuning.jobs.create(model="owner/small", training_file=file)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded")
    (training,) = backend.trained
    assert training.rows == [{"messages": ROWS[0]}, row, longer]


def test_a_message_with_tool_calls_needs_no_content(client, backend):
    row = json.loads(tool_row(tools=TOOLS))
    short = {**row, "messages": [row["messages"][0], {**row["messages"][1]}]}
    del short["messages"][1]["content"]
    file = client.files.create(file=("rows.jsonl", json.dumps(short).encode()), purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(model="owner/small", training_file=file)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded")
    assert backend.trained[0].rows == [row]


def test_an_empty_file_and_another_purpose_are_refused(idle):
    with pytest.raises(openai.BadRequestError, match="no rows"):
        idle.files.create(file=("rows.jsonl", b"\n"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="'fine-tune'"):
        idle.files.create(file=("rows.jsonl", GOOD.encode()), purpose="batch")


def test_nothing_is_left_of_a_refused_file(client, tmp_path):
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("rows.jsonl", b"{"), purpose="fine-tune")
    assert list((tmp_path / "files").iterdir()) == []


# Jobs


def test_a_job_trains_a_model_that_answers(client, backend):
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}}}
    job = start(client, suffix="solver", seed=7, method=method, metadata={"agent": "solver"})
    assert (job.object, job.status, job.fine_tuned_model) == ("fine_tuning.job", "queued", None)
    done = wait(client, job)
    assert done.fine_tuned_model == f"openai/ft:tiny:solver:{job.id.removeprefix('ftjob-')}"
    assert (done.seed, done.metadata, done.error) == (7, {"agent": "solver"}, None)
    assert done.finished_at >= done.created_at
    assert done.method.supervised.hyperparameters.n_epochs == 2
    assert ask(client, done.fine_tuned_model) == "You said: Hello I learned from 12 rows."
    assert client.models.list().data[-1].id == done.fine_tuned_model
    (training,) = backend.trained
    assert training.rows == [{"messages": row} for row in ROWS]
    assert training.seed == 7
    assert (training.hyperparameters.n_epochs, training.hyperparameters.batch_size) == (2, "auto")
    assert training.hyperparameters.learning_rate_multiplier == 0.5


def test_the_older_place_of_hyperparameters_works(client, backend):
    wait(client, start(client, hyperparameters={"n_epochs": 3, "batch_size": 2}))
    assert backend.trained[0].hyperparameters.n_epochs == 3
    assert backend.trained[0].hyperparameters.batch_size == 2


def test_a_trained_model_is_trained_on(client, backend):
    first = wait(client, start(client))
    second = wait(client, start(client, model=first.fine_tuned_model, suffix="again"))
    assert second.fine_tuned_model.startswith("openai/ft:tiny:again:")
    assert backend.trained[1].start.folder == backend.trained[0].folder


def test_events_tell_what_happened(client):
    job = wait(client, start(client))
    events = client.fine_tuning.jobs.list_events(job.id).data
    assert events[0].message == "The job has successfully completed"
    losses = [(event.data["step"], event.data["train_loss"]) for event in events if event.type == "metrics"]
    assert losses == [(2, 0.5), (1, 1.0)]  # newest first
    page = client.fine_tuning.jobs.list_events(job.id, limit=2)
    assert page.has_more
    assert [event.id for event in page] == [event.id for event in events]  # the client asks for the pages after it


def test_a_loss_that_is_no_number_is_left_out(client, backend):
    backend.scale = float("nan")
    job = wait(client, start(client))
    data = [event.data for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]
    assert data == [{"step": 2, "total_steps": 2}, {"step": 1, "total_steps": 2}]


def test_a_validation_file_is_measured(client, backend):
    job = wait(client, start(client, validation_file=upload(client, ROWS[:2]).id))
    assert backend.trained[0].validation == [{"messages": row} for row in ROWS[:2]]
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == job.fine_tuned_model
    assert checkpoint.metrics.full_valid_loss == 0.25
    assert checkpoint.step_number == 2


def test_jobs_are_listed_by_pages_newest_first(client):
    jobs = [start(client).id for _ in range(5)]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == jobs[::-1]
    page = client.fine_tuning.jobs.list(limit=2, after=jobs[1])
    assert ([job.id for job in page.data], page.has_more) == ([jobs[0]], False)
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.list(after="ftjob-0")


def test_a_trained_model_is_also_known_without_litellm_s_prefix(client, tmp_path):
    model = wait(client, start(client)).fine_tuned_model
    plain = model.removeprefix("openai/")
    assert plain != model
    assert ask(client, plain) == ask(client, model)
    assert client.models.retrieve(plain).id == model
    assert client.models.delete(plain).deleted
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_trained_model_is_deleted_with_its_weights(client, tmp_path):
    model = wait(client, start(client)).fine_tuned_model
    assert client.models.delete(model).deleted
    with pytest.raises(openai.NotFoundError):
        ask(client, model)
    assert list((tmp_path / "weights").iterdir()) == []
    with pytest.raises(openai.BadRequestError, match="not trained by a job"):
        client.models.delete("tiny")


def test_one_job_trains_at_a_time_in_order(client, backend):
    backend.may_finish.clear()
    first, second = start(client), start(client)
    wait(client, first, "running")
    assert client.fine_tuning.jobs.retrieve(second.id).status == "queued"
    assert ask(client, "tiny") == "You said: Hello"  # the base answers meanwhile
    backend.may_finish.set()
    wait(client, second)
    assert client.fine_tuning.jobs.retrieve(first.id).status == "succeeded"
    assert [training.folder.name for training in backend.trained] == [first.id, second.id]


def test_a_queued_and_a_running_job_are_cancelled(client, backend):
    backend.may_finish.clear()
    running, queued = start(client), start(client)
    wait(client, running, "running")
    for job in (queued, running):
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert backend.trained[0].stop.is_set()
    backend.may_finish.set()
    last = wait(client, start(client))
    assert [training.folder.name for training in backend.trained] == [running.id, last.id]
    assert client.fine_tuning.jobs.retrieve(running.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="already ended: it has succeeded"):
        client.fine_tuning.jobs.cancel(last.id)


def test_a_job_that_fails_says_why_and_the_next_one_runs(client, backend):
    backend.failure = TrainingError("All rows are too long.")
    failed = wait(client, start(client), "failed")
    assert failed.error.message == "All rows are too long."
    backend.failure = KeyError("secret")
    assert "secret" not in wait(client, start(client), "failed").error.message
    backend.failure = None
    wait(client, start(client))


def test_a_job_whose_end_could_not_be_written_ends_later(client, backend, monkeypatch):
    """The disk is full for a moment when the training is done."""
    is_full = threading.Event()

    def write(path, text):
        if is_full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_text(path, text)

    monkeypatch.setattr("sirius_dspy.server.jobs._PAUSE_S", 0.05)
    monkeypatch.setattr("sirius_dspy.server.store.write_text", write)
    backend.may_finish.clear()
    job = wait(client, start(client), "running")
    is_full.set()
    backend.may_finish.set()
    wait_until(lambda: (backend.trained[0].folder / "rows").exists(), 10)
    time.sleep(0.2)
    is_full.clear()
    assert ask(client, wait(client, job).fine_tuned_model).endswith("rows.")


def test_a_model_that_is_deleted_while_another_is_trained_from_it_costs_only_itself(client, backend):
    first = wait(client, start(client))
    backend.may_finish.clear()
    second = wait(client, start(client, model=first.fine_tuned_model), "running")
    client.models.delete(first.fine_tuned_model)
    backend.may_finish.set()
    assert ask(client, wait(client, second).fine_tuned_model).endswith("rows.")


def test_a_file_that_was_deleted_fails_its_job(client, backend):
    backend.may_finish.clear()
    wait(client, start(client), "running")
    job = start(client)
    client.files.delete(job.training_file)
    backend.may_finish.set()
    assert "No such file" in wait(client, job, "failed").error.message


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"training_file": "file-1"}, "training_file"),
        ({"validation_file": "../../etc/passwd"}, "validation_file"),
        ({"suffix": "../x"}, "suffix"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"epochs": 1}}, "hyperparameters.epochs"),
        ({"seed": -1}, "seed"),
        ({"extra_body": {"learning_rate": 1}}, "learning_rate"),
    ],
)
def test_a_wrong_job_is_refused(idle, settings, field):
    with pytest.raises(openai.BadRequestError) as caught:
        start(idle, **settings)
    assert caught.value.param.startswith(field)
    assert list(idle.fine_tuning.jobs.list()) == []


def test_an_unknown_model_or_job_is_a_404(idle):
    with pytest.raises(openai.NotFoundError):
        start(idle, model="gpt-4o")
    for call in (
        idle.fine_tuning.jobs.retrieve,
        idle.fine_tuning.jobs.cancel,
        idle.fine_tuning.jobs.list_events,
        idle.fine_tuning.jobs.checkpoints.list,
    ):
        with pytest.raises(openai.NotFoundError):
            call("ftjob-0")


# Restarts


def test_everything_is_there_after_a_restart(tmp_path):
    with serving(tmp_path) as client:
        file = upload(client)
        done = wait(client, start(client, training_file=file.id))
    with serving(tmp_path) as client:
        assert client.files.retrieve(file.id) == file
        assert client.fine_tuning.jobs.retrieve(done.id) == done
        assert ask(client, done.fine_tuned_model) == "You said: Hello I learned from 12 rows."
        assert client.fine_tuning.jobs.list_events(done.id).data[-1].message.startswith("Created")


def test_a_job_that_ran_at_the_end_of_a_server_is_queued_again(tmp_path):
    stuck = FakeBackend()
    stuck.may_finish.clear()
    with serving(tmp_path, stuck) as client:
        jobs = [start(client), start(client)]
        wait(client, jobs[0], "running")
    fresh = FakeBackend()
    with serving(tmp_path, fresh) as client:
        wait(client, jobs[1])
        assert wait(client, jobs[0]).error is None
    assert [training.folder.name for training in fresh.trained] == [job.id for job in jobs]


def test_a_killed_server_leaves_a_running_job_that_is_queued_again(tmp_path):
    with serving(tmp_path) as client:
        job = wait(client, start(client))
    record = tmp_path / "jobs" / f"{job.id}.json"
    values = {**json.loads(record.read_text()), "status": "running", "fine_tuned_model": None}
    record.write_text(json.dumps(values))
    with (tmp_path / "jobs" / f"{job.id}.jsonl").open("a") as events:
        events.write('{"id": "ftev')  # cut off by the kill
    with serving(tmp_path) as client:
        assert wait(client, job).fine_tuned_model == job.fine_tuned_model
        messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
        assert "The server was restarted. The job begins again." in messages


def test_a_second_server_on_the_same_folder_is_refused(tmp_path):
    with serving(tmp_path), pytest.raises(ServerError, match="Another server uses"), serving(tmp_path):
        raise AssertionError("it started")


def test_a_port_that_is_taken_is_refused(tmp_path):
    with serving(tmp_path / "one") as client:
        taken = ServerSettings(tmp_path / "other", port=client.base_url.port)
        with pytest.raises(ServerError, match=f"port {taken.port}"):
            Server(taken, FakeBackend()).run()


def test_a_damaged_record_is_named(tmp_path):
    with serving(tmp_path) as client:
        file = upload(client)
    (tmp_path / "files" / f"{file.id}.json").write_text("{")
    with pytest.raises(ServerError, match=file.id), serving(tmp_path):
        raise AssertionError("it started")
