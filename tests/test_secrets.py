"""Credentials of many kinds, quoted by a server wherever it can, are in no file, log, output or exception."""

import base64
import json
import logging
import traceback
from urllib.parse import quote

import dspy
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from sirius_dspy import Collect, ExperienceLibrary, Patience, SiriuS, save
from sirius_dspy.cli import app
from sirius_dspy.errors import LibraryError, RolloutError, SiriuSError
from sirius_dspy.mlflow import MLflowTracker, register
from sirius_dspy.optimizer.opening import open_library
from sirius_dspy.report import write_run_report
from sirius_dspy.testing import ScriptedTrainer, ToyLM, chat_reply
from tests.http_server import Handler, serving
from tests.mlflow_help import WARNINGS

pytest_plugins = ("tests.mlflow_help",)
pytestmark = [WARNINGS, pytest.mark.server]

PEM = "MIIEvQplantedPrivateKeyLine01AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHIIII"
PLANTED = {
    "api_key": "plantedApiKey-01",
    "subscription key": "planted/Subscription+02",
    "proxy password": "plantedProxy:03",
    "cookie": "plantedCookie04",
    "bearer": "plantedBearer.05",
    "private key": PEM,
    "aws secret": "planted/Aws+Secret06",
    "aws session": "plantedAwsSession07==",
    "azure token": "plantedAzure08",
    "password of the endpoint": "planted@Endpoint 09",
    "variable": "planted-variable-as-words",
    "password of the library": "planted#Library10",
    "password of a variable": "plantedVariable11",
    "unknown argument": "plantedTicket12\"quoted'",
    "key in a query": "plantedQuery13",
}
LIBRARY = f"postgresql+psycopg://me:{quote(PLANTED['password of the library'], safe='')}@127.0.0.1:9/db"
QUOTED = "\n".join(
    part
    for value in PLANTED.values()
    for part in (value, json.dumps(value), quote(value, safe=""), base64.b64encode(value.encode()).decode())
)


class Leaky(Handler):
    """Chat completions of a server that quotes every credential in its errors, and in some of its answers."""

    def do_POST(self):
        body = json.loads(self.read())
        prompt = body["messages"][-1]["content"]
        status = self.server.all_fail or next((int(word) for word in ("400", "500") if f"fail {word}" in prompt), 200)
        if status != 200:
            quoted = f"Refused: {QUOTED} {self.headers['Authorization']}"
            return self.answer({"error": {"message": quoted, "type": "x", "code": QUOTED}}, status)
        text = chat_reply(answer=f"right, says {QUOTED}" if "echo" in prompt else "right")
        text = f"No fields, but {QUOTED}" if "garbled" in prompt else text
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return self.answer({"id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                            "choices": [choice], "usage": usage})  # fmt: skip


@pytest.fixture
def leaky():
    with serving(Leaky, all_fail=0) as server:
        yield server


class Ask(dspy.Module):
    def __init__(self):
        super().__init__()
        self.solver = dspy.Predict("question -> answer")
        self.checker = dspy.Predict("question, draft -> answer")

    def forward(self, question):
        return self.checker(question=question, draft=self.solver(question=question).answer)


def lm_at(server):
    pem = f"-----BEGIN PRIVATE KEY-----\n{PEM}\n-----END PRIVATE KEY-----\n"
    account = {"type": "service_account", "private_key": pem}
    user = f"me:{quote(PLANTED['password of the endpoint'], safe='')}"
    proxy = base64.b64encode(f"me:{PLANTED['proxy password']}".encode()).decode()
    return dspy.LM(
        "openai/some-model",
        api_key=PLANTED["api_key"],
        api_base=f"http://{user}@127.0.0.1:{server.server_port}/v1",
        extra_headers={
            "Ocp-Apim-Subscription-Key": PLANTED["subscription key"],
            "Proxy-Authorization": f"Basic {proxy}",
            "Cookie": f"theme=dark; session={PLANTED['cookie']}",
            "X-Upstream": f"Bearer {PLANTED['bearer']}",
        },
        extra_body={"ticket": PLANTED["unknown argument"]},
        vertex_credentials=json.dumps(account),
        aws_secret_access_key=PLANTED["aws secret"],
        aws_session_token=PLANTED["aws session"],
        azure_ad_token=PLANTED["azure token"],
        num_retries=0,
        cache=False,
    )


def right(example, prediction, trace=None):
    return prediction.answer.startswith("right")


QUESTIONS = ("plain 1", "plain 2", "echo 1", "echo 2", "garbled", "fail 400", "fail 500")


@pytest.fixture
def planted(leaky, monkeypatch, chat_adapter):
    """An LM, a library and an environment with all of them."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # LiteLLM looks for prices in the network else
    monkeypatch.setenv("EXAMPLE_API_KEY", PLANTED["variable"])
    monkeypatch.setenv("EXAMPLE_SERVICE", f"https://me:{PLANTED['password of a variable']}@127.0.0.1/x")
    monkeypatch.setenv("EXAMPLE_ENDPOINT", f"https://127.0.0.1/x?sig={PLANTED['key in a query']}&version=2024-05-01")
    ExperienceLibrary(LIBRARY)
    return lm_at(leaky)


def compiled_by(lm, tmp_path, **settings):
    program = Ask()
    program.set_lm(lm)
    questions = [dspy.Example(question=text, answer="right").with_inputs("question") for text in QUESTIONS]
    trainer = ScriptedTrainer(lambda request: request.lm.copy(model="openai/trained"))
    patience = Patience(retries=0, max_unfinished=1)  # of the question that the server always fails on
    optimizer = SiriuS(
        right,
        trainer=trainer,
        iterations=1,
        collect=Collect(samples=1),
        run_dir=tmp_path / "run",
        patience=patience,
        **settings,
    )
    return optimizer.compile(program, trainset=questions, valset=questions[:2])


def found_in(texts):
    return sorted({(name, where) for where, text in texts.items() for name, value in PLANTED.items() if value in text})


def files_of(folder):
    return {str(path): path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:The runs of 1 examples did not end")  # our own: "fail 500" always fails
def test_no_credential_is_in_what_a_compile_leaves_behind(planted, store, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG, logger="sirius_dspy")
    tracker = MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri)
    compiled = compiled_by(planted, tmp_path, tracker=tracker)
    assert tracker.not_logged == {}
    save(compiled, tmp_path / "checkpoint")
    register(compiled, "asks", tracking_uri=store.tracking_uri, run_id=tracker.run_id)
    write_run_report(tmp_path / "run", page=tmp_path / "report.html")
    printed = [
        CliRunner().invoke(app, ["library", *words, str(tmp_path / "run")]).output for words in (["ls"], ["stats"])
    ]
    done = CliRunner().invoke(app, ["library", "export", str(tmp_path / "run"), "--out", str(tmp_path / "rows.jsonl")])
    assert done.exit_code == 0, done.output
    out, err = capfd.readouterr()
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("sirius_dspy"))
    files = files_of(tmp_path)
    assert found_in({**files, "printed": "".join(printed), "stdout": out, "stderr": err, "log": ours}) == []
    # They were there to be found: failures and answers that quote them are in the library and in the traces.
    library = open_library(tmp_path / "run")
    kept = [json.dumps(trajectory.to_dict()) for trajectory in library.trajectories()]
    assert sum("[redacted]" in text for text in kept) >= 3
    assert library.verify() == []
    assert any("[redacted]" in text for path, text in files.items() if path.endswith("mlflow.db"))
    assert any("[redacted]" in text for path, text in files.items() if path.endswith(".jsonl"))
    assert {"rows.jsonl", "report.html", "manifest.json", "solver.jsonl"} <= {path.split("/")[-1] for path in files}


def test_no_credential_is_in_an_error_that_stops_a_compile(planted, leaky, tmp_path, store):
    leaky.all_fail = 401
    tracker = MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri)
    with pytest.raises(RolloutError) as caught:
        compiled_by(planted, tmp_path, tracker=tracker)
    shown = "".join(traceback.format_exception(caught.value))  # with all its causes, as on a terminal
    assert "Refused: [redacted]" in str(caught.value)
    assert found_in({**files_of(tmp_path), "error": shown}) == []


def test_the_key_of_a_judge_that_only_the_metric_knows(leaky, tmp_path, chat_adapter):
    key, url = "plantedJudge-44", f"http://127.0.0.1:{leaky.server_port}/v1"
    leaky.all_fail = 400

    def judged(example, prediction, trace=None):
        judge = dspy.Predict("answer -> verdict")
        judge.lm = dspy.LM("openai/judge", api_key=key, api_base=url, cache=False, num_retries=0)
        return judge(answer=prediction.answer).verdict == "good"

    program = dspy.Predict("question -> answer")
    program.lm = ToyLM(skill=lambda prompt: chat_reply(answer="yes"))
    questions = [dspy.Example(question="1+1?").with_inputs("question")]
    optimizer = SiriuS(judged, iterations=1, collect=Collect(samples=1), augmenter=None, run_dir=tmp_path / "run")
    with pytest.raises(SiriuSError) as caught:
        optimizer.compile(program, trainset=questions, valset=questions)
    files = files_of(tmp_path)
    assert key not in "".join(traceback.format_exception(caught.value))
    assert [path for path, text in files.items() if key in text] == []


def test_a_library_that_cannot_be_reached_does_not_show_its_password():
    password = PLANTED["password of the library"]
    library = ExperienceLibrary(f"{LIBRARY}?connect_timeout=1")
    with pytest.raises(LibraryError) as caught:
        library.count()
    assert password not in "".join(traceback.format_exception(caught.value))


def test_a_trace_keeps_fields_that_are_named_like_credentials(store, tmp_path, chat_adapter):
    tracker = MLflowTracker(experiment="tests", tracking_uri=store.tracking_uri)
    program = dspy.Predict("sentence, token, password -> tag")
    program.lm = ToyLM(skill=lambda prompt: chat_reply(tag="NOUN"))
    names = ("sentence", "token", "password")
    words = [dspy.Example(sentence="a tree", token=f"tree {n}", password="oak").with_inputs(*names) for n in range(2)]
    settings = {
        "iterations": 1,
        "collect": Collect(samples=1),
        "augmenter": None,
        "tracker": tracker,
        "run_dir": tmp_path / "run",
    }
    SiriuS(lambda *_: 1.0, **settings).compile(program, trainset=words, valset=words)
    place = store.get_experiment_by_name("tests").experiment_id
    traces = MlflowClient(tracking_uri=store.tracking_uri).search_traces(locations=[place])
    assert {frozenset(trace.data.spans[0].inputs) for trace in traces} == {frozenset(names)}
