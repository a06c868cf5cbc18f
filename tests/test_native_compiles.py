"""Whole compiles of agents that call tools natively: training, repair, exports and refusals."""

from __future__ import annotations

import json

import dspy
import pytest

from sirius_dspy import CriticAugmenter, HostedTrainer, ProviderTrainer, SiriuS, load, open_export, save
from sirius_dspy.errors import NoSuccessError, UnpreparedProgramError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.testing import chat_reply
from sirius_dspy.training.hosted_lm import retrained
from sirius_dspy.training.tools import check_tools
from tests.native import (
    ADAPTER,
    EXAMPLES,
    Desk,
    ToolServer,
    Watched,
    calls_of,
    compiled_by,
    is_right,
    lines,
    now,
    search,
    turn,
)
from tests.test_hosted import lm_at
from tests.test_local_tools import HERMES
from tests.tiny_models import write_model


@pytest.fixture(autouse=True)
def native_adapter():
    with dspy.context(adapter=ADAPTER):
        yield


# Whole compiles


@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    """A compile whose planner calls the wrong tool until it is advised, at a server with OpenAI's API."""
    run_dir, fake = tmp_path_factory.mktemp("native"), ToolServer()
    with dspy.context(adapter=ADAPTER), fake.serving() as url:
        compiled = compiled_by(run_dir, lm_at(url), augmenter=CriticAugmenter(), trainer=HostedTrainer())
        yield run_dir, fake, compiled


def test_a_hosted_agent_is_trained_on_repaired_calls_under_the_prompt_that_was_sent(repaired):
    run_dir, fake, _ = repaired
    (text,) = [text for text in fake.files.values() if b'"tools"' in text]
    asked = [body for body in fake.chats if body.get("tools") and not body["model"].startswith("ft:")]
    sent = [(body["messages"], json.dumps(body["tools"])) for body in asked]
    rows = lines(text)
    assert len(rows) == 2
    for row in rows:
        assert (row["messages"][:-1], json.dumps(row["tools"])) in sent
        assert calls_of(row) == [("search", {"query": "Zürich", "options": {"deep": [1, None]}})]
        assert "feedback" not in json.dumps(row)
    assert lines((run_dir / "training" / "iteration-1" / "planner.jsonl").read_bytes()) == rows


def test_the_fine_tuned_agent_still_calls_tools_natively(repaired):
    _, fake, compiled = repaired
    assert compiled(question="New?").answer == "right"
    asked = fake.chats[-2]
    assert asked["model"].startswith("ft:")
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["search", "now"]


def test_a_saved_agent_still_calls_tools_natively(tmp_path):
    program = Desk()
    program.set_lm(retrained(dspy.LM("openai/gpt-4o-mini"), "openai/ft:gpt-4o-mini:org::1"))
    save(program, tmp_path / "checkpoint")
    loaded = load(tmp_path / "checkpoint", program=Desk).planner.lm
    assert (loaded.model, loaded.supports_function_calling) == ("openai/ft:gpt-4o-mini:org::1", True)
    assert loaded.copy(temperature=1.0).supports_function_calling


def test_an_lm_that_calls_no_tools_is_not_said_to(tmp_path):
    for lm, adapter in ((dspy.LM("openai/unknown"), ADAPTER), (dspy.LM("openai/gpt-4o-mini"), dspy.ChatAdapter())):
        with dspy.context(adapter=adapter):
            assert not retrained(lm, "openai/ft:x:org::1").supports_function_calling


def test_a_compile_that_has_ended_is_taken_up_without_asking_again(repaired):
    run_dir, fake, compiled = repaired
    before = len(fake.chats)
    url = compiled.planner.lm.kwargs["api_base"]
    again = compiled_by(run_dir, lm_at(url), augmenter=CriticAugmenter(), trainer=HostedTrainer())
    assert again.planner.lm.supports_function_calling
    assert len(fake.chats) == before
    with ExperienceLibrary(run_dir / "library.sqlite") as library:
        files = sorted((run_dir / "training").glob("iteration-1/*[!s].jsonl"))
        assert [library.verify_rows(file) for file in files if "sources" not in file.name] == [[], []]


@pytest.mark.parametrize("to", ["sft", "dpo", "kto", "sdpo"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_exports_have_tools_and_calls_as_templates_expect_them(repaired, tmp_path, to, ending):
    import datasets

    export, path = open_export(repaired[0]), tmp_path / f"{to}.{ending}"
    with export.library:
        done = getattr(export, f"to_{to}")(path)
    kind = {"jsonl": "json"}.get(ending, ending)
    found = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    rows = [row for row in found if row["agent"] == "planner"]
    assert len(rows) == done.rows["planner"] == {"kto": 4}.get(to, 2)
    for row in rows:
        assert [tool["function"]["name"] for tool in json.loads(row["tools"])] == ["search", "now"]
        for column, town in (("chosen", "Zürich"), ("rejected", "Bern")) if to == "dpo" else ():
            (reply,) = row[column]
            assert reply["tool_calls"][0]["function"]["arguments"]["query"] == town
        if to in ("sft", "kto"):
            (reply,) = row["completion"]
            right = row.get("label", True)
            called = reply["tool_calls"][0]["function"]["arguments"]
            assert called == {"query": "Zürich" if right else "Bern", "options": {"deep": [1, None]}}


DEEP = {"„deep“": [1, None, 0.5, {"b": {}, "a": []}]}


class Looping(ToolServer):
    """Looks something up, and then submits what it found."""

    def chat(self, body):
        answered = super().chat(body)
        results = [message["content"] for message in body["messages"] if message["role"] == "tool"]
        name, arguments = (
            ("submit", {"answer": "right"}) if results else ("search", {"query": "Zürich", "options": DEEP})
        )
        function = {"name": name, "arguments": json.dumps(arguments)}
        called = [{"id": f"call_{len(self.chats)}", "type": "function", "function": function}]
        text = chat_reply(next_thought="Look.") if not results else None
        answered["choices"][0]["message"] = {"role": "assistant", "content": text, "tool_calls": called}
        return answered


def test_the_turns_of_a_react_are_uploaded_as_they_were_sent(tmp_path):
    fake = Looping()
    with fake.serving() as url:
        program = dspy.ReActV2("question -> answer", tools=[search, now])
        program.set_lm(lm_at(url))
        compiled = compiled_by(tmp_path, program=program, trainer=HostedTrainer())
        assert compiled(question="New?").answer == "right"
    rows = sorted(lines(next(iter(fake.files.values()))), key=lambda row: len(row["messages"]))
    sent = [(body["messages"], json.dumps(body["tools"])) for body in fake.chats]
    assert [len(row["messages"]) for row in rows] == [3, 3, 6, 6]
    for row in rows:
        assert (as_sent(row["messages"][:-1]), json.dumps(row["tools"])) in sent
        is_first = len(row["messages"]) == 3
        assert calls_of(row) == [
            ("search", {"query": "Zürich", "options": DEEP}) if is_first else ("submit", {"answer": "right"})
        ]
    assert [message.get("weight") for message in rows[-1]["messages"]] == [None, None, 0, None, None, None]


def as_sent(messages):
    """Messages without the weights that only training has."""
    return [{name: part for name, part in message.items() if name != "weight"} for message in messages]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # TRL sets what Transformers renamed
def test_a_trainer_of_trl_trains_on_tool_calls(repaired, tmp_path):
    import datasets
    import transformers
    import trl

    export, path = open_export(repaired[0]), tmp_path / "rows.parquet"
    with export.library:
        export.to_sft(path)
    found = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    rows = found.filter(lambda row: row["agent"] == "planner")
    folder = write_model(tmp_path / "model", "llama", max_position_embeddings=4096)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = HERMES
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    args = trl.SFTConfig(
        **{"output_dir": str(tmp_path / "out"), "max_length": 4096, "per_device_train_batch_size": 2, "max_steps": 1},
        **{"report_to": "none", "save_strategy": "no", "bf16": False, "use_cpu": True, "disable_tqdm": True},
    )
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    written = tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert '"arguments": {"query": "Zürich", "options": {"deep": [1, null]}}' in written
    assert '"description": "Tell the time."' in written
    assert trainer.train().global_step == 1


# Repair


def test_a_repaired_answer_with_other_ids_is_the_same_answer(tmp_path):
    class Stubborn(ToolServer):
        def chat(self, body):
            answered = super().chat(body)
            call = (answered["choices"][0]["message"].get("tool_calls") or [{}])[0]
            if call:
                call["function"]["arguments"] = '{"query": "Bern"}'
            return answered

    with Stubborn().serving() as url, pytest.raises(NoSuccessError):
        compiled_by(tmp_path, lm_at(url), augmenter=CriticAugmenter(), trainer=HostedTrainer())
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        verdicts = [attempt.verdict for repair in library.repairs() for attempt in repair.attempts]
    assert verdicts.count("unchanged") >= 2
    assert "repaired" not in verdicts


# Refusals


def refusal(tmp_path, program=None, examples=EXAMPLES, **settings):
    """Return why a compile is refused, and check that nothing was asked before."""
    lm = Watched()
    program = program or Desk()
    program.set_lm(lm)
    with pytest.raises(UnpreparedProgramError) as refused:
        SiriuS(is_right, run_dir=tmp_path, **settings).compile(program, trainset=examples, valset=examples)
    assert lm.sent == []
    return str(refused.value)


def test_dspys_own_provider_takes_no_tool_calls(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    program = Desk()
    program.set_lm(dspy.LM("openai/gpt-4o-mini"))
    optimizer = SiriuS(is_right, run_dir=tmp_path, trainer=ProviderTrainer())
    with pytest.raises(UnpreparedProgramError, match=r"'planner'.*'calls'.*use_native_function_calling=False.*frozen"):
        optimizer.compile(program, trainset=EXAMPLES, valset=EXAMPLES)


def test_a_history_with_tool_calls_is_refused_like_an_agent_that_calls(tmp_path):
    program = dspy.Predict("question, history: dspy.History -> answer")
    examples = [
        dspy.Example(question="?", history=dspy.History(messages=[turn(0, with_tools=with_tools)])).with_inputs(
            "question", "history"
        )
        for with_tools in (True, False)
    ]
    assert "'self' has native tool calls in its field 'history'" in refusal(tmp_path, program, examples)
    parts = ({"self": ["self"]}, {"self": Watched()}, ADAPTER, ProviderTrainer())
    check_tools(program, examples[1:], *parts)  # a conversation of texts is fine


def test_a_provider_can_declare_that_it_trains_on_tool_calls():
    for declared in (True, lambda model: model == "scripted/lm"):
        lm = Watched()
        lm.provider.trains_on_tools = declared
        assert ProviderTrainer().trains_on_tools(lm)
    assert not ProviderTrainer().trains_on_tools(lm.copy(model="scripted/other"))


def test_tools_that_must_always_be_called_are_refused(tmp_path):
    program = Desk()
    program.planner.config = {"tool_choice": "required"}
    assert "`tool_choice` of 'planner' is 'required'" in refusal(tmp_path, program, trainer=HostedTrainer())
