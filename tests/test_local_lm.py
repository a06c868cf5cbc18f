"""LocalLM with the real embedded model: answers, training, saving. Marked `local`; about a minute and a half."""

import asyncio
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.clients.utils_finetune import TrainingStatus
from dspy.utils.exceptions import ContextWindowExceededError, LMInvalidRequestError, LMUnexpectedError

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.errors import ModelNotFoundError, RolloutError, TrainingError
from sirius_dspy.local import LocalLM, LoraOptions, OpenVINOEngine, TransformersEngine
from sirius_dspy.local.batching import Call
from sirius_dspy.local.chat import load_chat
from sirius_dspy.local.engine import GenerationOptions
from sirius_dspy.local.lora import to_tokens
from sirius_dspy.local.models import find, resolve
from sirius_dspy.local.serving import engines
from tests import ROOT
from tests.wait import wait_until

if absent := [name for name in ("torch", "trl", "openvino_genai", "gguf") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(absent)}", allow_module_level=True)

pytestmark = [
    pytest.mark.local,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # swig and gguf, at import
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # inside transformers
]

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ivy", "Jon", "Kim", "Lea", "Max", "Ned", "Ola", "Pam")
HOBBIES = ("tea", "rain", "cats", "dogs", "golf", "chess", "jazz", "opera", "soup", "rice", "boats", "trains")


def statement(number: int) -> tuple[str, str]:
    """A question and the sentence that answers it."""
    name, hobby = NAMES[number % 16], HOBBIES[(7 * number) % 12]
    return f"context: {name} likes {hobby}.\nquestion: Who likes {hobby}?", f"{name} likes {hobby}."


def row(number: int) -> dict[str, Any]:
    question, answer = statement(number)
    system = {"role": "system", "content": "Copy the statement."}
    return {"messages": [system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [row(number) for number in range(16)]
QUICK = {"epochs": 4, "batch_size": 8, "learning_rate": 2e-3, "warmup": 0.0}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for the file: converting the tokenizer and the weights takes most of the time."""
    before, folder = os.environ.get("SIRIUS_HOME"), tmp_path_factory.mktemp("home")
    os.environ["SIRIUS_HOME"] = str(folder)
    logger = logging.getLogger("dspy.clients.lm")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # "truncated", for every answer of a base model
    yield folder
    logger.setLevel(level)
    engines().close()
    if before is None:
        del os.environ["SIRIUS_HOME"]
    else:
        os.environ["SIRIUS_HOME"] = before


@pytest.fixture(scope="module")
def lm(home: Path) -> LocalLM:
    return LocalLM("smollm2-135m-instruct", max_tokens=12)


@pytest.fixture(scope="module")
def trained(lm: LocalLM, home: Path) -> LocalLM:
    """The base model after one short fine-tune; its progress is in the job's folder."""
    steps: list[tuple[int, int, float]] = []
    kwargs = {**QUICK, "output_dir": home / "weights" / "copier", "on_progress": lambda *step: steps.append(step)}
    job = lm.finetune(ROWS, "chat", kwargs)
    result = job.result()
    if isinstance(result, Exception):
        raise result
    assert job.status() == TrainingStatus.succeeded
    assert [step[:2] for step in steps] == [(number, 8) for number in range(1, 9)]
    assert steps[-1][2] < steps[0][2]
    return result


def test_importing_the_package_loads_no_engine() -> None:
    code = (
        "import sys, sirius_dspy.local; print([m for m in ('torch', 'openvino', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_engines_that_load_at_the_same_time_all_find_the_tokenizers(lm: LocalLM) -> None:
    """OpenVINO removes the variable after each load, unless it was set before."""
    lm("Hello", max_tokens=1)
    assert Path(os.environ["OPENVINO_TOKENIZERS_PATH_GENAI"]).is_file()


def test_files_beside_the_weights_are_neither_read_nor_run(
    lm: LocalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sirius_dspy.local.train import load_model

    hello = [{"role": "user", "content": "Hello"}]
    weights = lm.path
    expected = load_chat(resolve(lm.model)).prompt(hello)
    monkeypatch.setenv("SIRIUS_HOME", str(tmp_path / "home"))  # where nothing is converted yet
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # somebody who agrees to run the code
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(weights)
    code = {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoModelForCausalLM": "evil.Evil"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "Evil", "eos_token": "a", **code}))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/evil", **code}))
    (folder / "chat_template.jinja").write_text("Evil")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert load_chat(find(folder)).prompt(hello) == expected
    assert type(load_model(find(folder).path, None)).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


def count_equal(first: list[str], second: list[str]) -> int:
    return sum(one == other for one, other in zip(first, second, strict=True))


def test_64_threads_get_the_answers_that_one_thread_gets(lm: LocalLM) -> None:
    predict = dspy.Predict("question -> answer")

    def ask(number: int) -> str:
        with dspy.context(lm=lm, adapter=PlainAdapter()):
            return str(predict(question=f"What is {number} plus one?").answer)

    with ThreadPoolExecutor(64) as threads:
        together = list(threads.map(ask, range(64)))
        again = list(threads.map(ask, range(64)))
    assert len([key for key in engines().list_loaded() if lm.model in key]) == 1
    # In another batch, sums are added up in another order, and two tokens that are nearly equal may change places. With
    # bfloat16, which an answer does depend on, only 18 of 64 answers agree.
    assert count_equal(together, again) >= 60
    assert count_equal([ask(number) for number in range(6)], together[:6]) >= 5
    assert len(set(together)) > 30


def test_usage_is_counted_in_tokens(lm: LocalLM) -> None:
    with dspy.context(lm=lm, adapter=PlainAdapter(), track_usage=True):
        usage = dspy.Predict("question -> answer")(question="Hello?").get_lm_usage()[lm.model]
    chat = load_chat(resolve(lm.model))
    prompt = PlainAdapter().format(dspy.Signature("question -> answer"), [], {"question": "Hello?"})
    assert usage["prompt_tokens"] == len(chat.encode(chat.prompt(prompt)))
    assert 0 < usage["completion_tokens"] <= 12


def test_seeds_and_rollout_ids_make_samples_differ_and_repeat(lm: LocalLM) -> None:
    def sample(**kwargs: Any) -> str:
        return str(lm("Name something nice.", temperature=1.0, **kwargs)[0])

    by_rollout = [sample(rollout_id=number) for number in range(4)]
    assert [sample(rollout_id=number) for number in range(4)] == by_rollout
    assert len(set(by_rollout)) == 4
    assert sample(seed=7, rollout_id=1) == sample(seed=7, rollout_id=2) == sample(seed=7)
    assert len({sample() for _ in range(3)}) > 1
    three = lm("Name something nice.", temperature=1.0, rollout_id=9, n=3)
    assert len(set(three)) == 3
    assert lm("Name something nice.", temperature=1.0, rollout_id=9, n=3) == three


def test_stop_strings_cut_exactly_even_inside_a_token(lm: LocalLM) -> None:
    full = lm("Name a fruit and a colour.", max_tokens=20)[0]
    stop = full[len(full) // 2 :][:3]
    assert lm("Name a fruit and a colour.", max_tokens=20, stop=[stop])[0] == full.split(stop)[0]


def test_async_calls_share_the_batch(lm: LocalLM) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(lm.acall(f"Say {number}.", temperature=1.0, rollout_id=3) for number in range(8)))

    answers = [answer[0] for answer in asyncio.run(ask())]
    assert answers == [answer[0] for answer in asyncio.run(ask())]
    assert len(set(answers)) > 4


def test_bad_calls_are_clean_errors(lm: LocalLM) -> None:
    with pytest.raises(ContextWindowExceededError, match="the model reads at most 8192"):
        lm("word " * 9000)
    with pytest.raises(LMInvalidRequestError, match="top_p"):
        lm("Hi", top_p=0.0)
    with pytest.raises(dspy.LMUnsupportedFeatureError, match=r"config\.response_format"):
        lm("Hi", response_format={"type": "json_object"})
    assert lm("Hi")[0]


def test_copies_share_weights_and_state_is_plain(lm: LocalLM, tmp_path: Path) -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    copied = program.deepcopy()
    assert copied.lm.model == lm.model
    assert len([key for key in engines().list_loaded() if lm.model in key]) == 1
    program.save(tmp_path / "program.json")
    loaded = dspy.Predict("question -> answer")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert isinstance(loaded.lm, LocalLM)
    assert loaded.lm.provider.finetunable
    with dspy.context(adapter=PlainAdapter()):
        assert loaded(question="Hello?").answer == program(question="Hello?").answer
    json.dumps(LocalLM(lora=LoraOptions(rank=2)).dump_state())


def test_closing_an_engine_ends_a_long_answer_with_an_error(lm: LocalLM) -> None:
    is_answering = threading.Event()

    class Watched(OpenVINOEngine):
        def _advance(self, admitted: list[Call]) -> None:
            super()._advance(admitted)
            is_answering.set()

    weights = resolve(lm.model)
    engine = Watched(weights.path, load_chat(weights))
    prompt = load_chat(weights).prompt([{"role": "user", "content": "Write a long story about a dog."}])
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(engine.generate, prompt, GenerationOptions(max_tokens=4000)) for _ in range(2)]
        assert is_answering.wait(60)
        engine.close()
        for answer in answers:
            with pytest.raises(RolloutError, match="closed"):
                answer.result(timeout=10)


def test_launch_and_kill_may_come_twice(lm: LocalLM) -> None:
    lm.launch()
    lm.launch()
    assert any(lm.model in key for key in engines().list_loaded())
    lm.kill()
    lm.kill()
    assert not any(lm.model in key for key in engines().list_loaded())
    assert lm("Hi")[0]  # loads again


def test_training_prompts_are_inference_prompts_token_by_token(lm: LocalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def remember(engine: OpenVINOEngine, admitted: list[Call]) -> None:
        seen.extend(call.ids for call in admitted)
        advance(engine, admitted)

    advance = OpenVINOEngine._advance
    monkeypatch.setattr(OpenVINOEngine, "_advance", remember)
    signature = dspy.Signature("context, question -> answer", "Copy it.")
    inputs = {"context": "Ann likes tea.", "question": "Who?"}
    with dspy.context(lm=lm, adapter=PlainAdapter()):
        dspy.Predict(signature)(**inputs)
    messages = PlainAdapter().format_finetune_data(signature, [], inputs, {"answer": "Ann"})["messages"]
    chat = load_chat(resolve(lm.model))
    tokens = to_tokens(chat, {"messages": messages})
    assert [list(tokens.prompt)] == seen
    whole = chat.tokenizer.apply_chat_template(messages, tokenize=False)
    assert chat.tokenizer.decode([*tokens.prompt, *tokens.completion]) == whole.rstrip("\n")


def test_finetuning_teaches_and_leaves_a_complete_folder(lm: LocalLM, trained: LocalLM, home: Path) -> None:
    assert trained.model.startswith("local/smollm2-135m-instruct.q4_1+lora@")
    assert trained.folder == home / "weights" / "copier"
    assert sorted(path.name for path in trained.folder.iterdir()) == ["adapter", "model.gguf", "training.json"]
    assert [path.name for path in trained.folder.parent.iterdir()] == ["copier"]
    record = json.loads((trained.folder / "training.json").read_text())
    assert record["base"] == lm.model
    assert (record["num_rows"], record["num_dropped"], len(record["losses"])) == (16, 0, 8)
    assert record["options"]["epochs"] == 4
    with ThreadPoolExecutor(16) as threads:
        learnt = list(threads.map(lambda item: trained(messages=item["messages"][:-1])[0].strip(), ROWS))
    expected = [item["messages"][-1]["content"] for item in ROWS]
    assert sum(answer == gold for answer, gold in zip(learnt, expected, strict=True)) >= 13
    assert lm(messages=ROWS[0]["messages"][:-1])[0].strip() != expected[0]  # the old LM is as it was


def test_the_same_job_again_is_found_and_another_does_not_overwrite(lm: LocalLM, trained: LocalLM) -> None:
    steps: list[tuple[int, int, float]] = []
    written = trained.path.stat().st_mtime_ns
    kwargs = {**QUICK, "output_dir": trained.folder, "on_progress": lambda *step: steps.append(step)}
    again = lm.finetune(ROWS, "chat", kwargs).result()
    assert again.model == trained.model
    assert (steps, trained.path.stat().st_mtime_ns) == ([], written)  # nothing is trained again
    other = lm.finetune(ROWS[:8], "chat", {**QUICK, "output_dir": trained.folder}).result()
    assert isinstance(other, TrainingError)
    assert "Pass another `output_dir`" in str(other)


def test_weights_that_moved_are_found_by_registering_them(trained: LocalLM, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(trained.folder, copy)
    moved = LocalLM(copy / "model.gguf", max_tokens=12)
    assert moved.model == trained.model
    question = ROWS[0]["messages"][:-1]
    assert moved(messages=question) == trained(messages=question)


def test_the_adapter_in_transformers_answers_like_the_merged_file(trained: LocalLM, lm: LocalLM) -> None:
    base = resolve(lm.model)
    chat = load_chat(base)
    engine = TransformersEngine(base, chat, adapter=trained.folder / "adapter")
    options = GenerationOptions(max_tokens=12)
    prompts = [chat.prompt(item["messages"][:-1]) for item in ROWS]
    with ThreadPoolExecutor(16) as threads:
        written = list(threads.map(lambda prompt: engine.generate(prompt, options), prompts))
    merged = [trained(messages=item["messages"][:-1])[0] for item in ROWS]
    assert sum(generation.text == text for generation, text in zip(written, merged, strict=True)) >= 14
    assert all(
        generation.prompt_tokens == len(chat.encode(prompt))
        for generation, prompt in zip(written, prompts, strict=True)
    )
    for narrow in (GenerationOptions(12, temperature=2.0, top_k=1), GenerationOptions(12, temperature=2.0, top_p=1e-6)):
        assert engine.generate(prompts[0], narrow).text == engine.generate(prompts[0], options).text
    replies = [item["messages"][-1]["content"] for item in ROWS]
    with ThreadPoolExecutor(16) as threads:
        scores = list(threads.map(engine.score, prompts, replies))
    for prompt, reply, together in zip(prompts[:3], replies, scores, strict=False):
        alone = engine.score(prompt, reply)
        assert len(together) == len(alone) == len(chat.encode_completion(reply))
        assert sum(together) == pytest.approx(sum(alone), abs=0.5 * len(alone))  # bfloat16 rounds by batch
    assert len({tuple(row) for row in scores}) == len({*zip(prompts, replies, strict=True)})  # each has its own
    sampled = GenerationOptions(max_tokens=8, temperature=1.5, seed=3, top_k=50, top_p=0.9)
    drawn = engine.generate(chat.prompt([{"role": "user", "content": "Tell me."}]), sampled)
    assert drawn == engine.generate(chat.prompt([{"role": "user", "content": "Tell me."}]), sampled)
    short = engine.generate(prompts[0], GenerationOptions(max_tokens=12, stop=("likes",)))
    assert (short.text.strip(), short.finish_reason) == (NAMES[0], "stop")
    engine.close()


def test_cancelling_ends_the_child_and_keeps_nothing(lm: LocalLM, tmp_path: Path) -> None:
    first = threading.Event()
    kwargs = {"epochs": 500, "output_dir": tmp_path / "never", "on_progress": lambda *_: first.set()}
    job = lm.finetune(ROWS, "chat", kwargs)
    assert first.wait(120)
    assert job.status() == TrainingStatus.running
    assert job.cancel()
    result = job.result(timeout=20)
    assert isinstance(result, TrainingError)
    assert "cancelled" in str(result)
    assert job.status() == TrainingStatus.cancelled
    assert list(tmp_path.iterdir()) == []


def test_a_failing_progress_hook_or_bad_rows_fail_the_job_not_the_process(lm: LocalLM) -> None:
    wrong = lm.finetune([{"messages": [{"role": "user", "content": "hi"}]}], "chat", QUICK).result(timeout=60)
    assert isinstance(wrong, ValueError)
    empty = lm.finetune([], "chat", QUICK).result(timeout=60)
    assert isinstance(empty, TrainingError)
    unknown = lm.finetune(ROWS, "chat", {"lr": 1}).result(timeout=60)
    assert isinstance(unknown, TypeError)


def children(pid: int) -> list[int]:
    """Process ids of a process's children, whichever of its threads started them."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


INTERRUPTED = """
import faulthandler, signal
from sirius_dspy import LocalLM

faulthandler.enable()
signal.signal(signal.SIGINT, signal.default_int_handler)
lm = LocalLM(max_tokens=2)
for _ in range(2):
    lm("Hello")
    lm.kill()
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_an_interrupt_after_an_engine_of_the_main_thread_is_no_crash():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n" * 2), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="finds the child in /proc")
def test_a_killed_parent_takes_the_child_with_it(lm: LocalLM, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from sirius_dspy.local import LocalLM
            tell = lambda *_: print("on", flush=True)
            kwargs = {{"epochs": 500, "output_dir": {str(tmp_path / "out")!r}, "on_progress": tell}}
            LocalLM().finetune({ROWS!r}, "chat", kwargs).result()
            """
        ),
        encoding="utf-8",
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = children(parent.pid)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{child}/status").exists())
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_said_at_construction_and_at_the_call(trained: LocalLM, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        LocalLM(tmp_path / "model.gguf")
    lost = trained.copy(model="local/lost@0123456789ab")
    with pytest.raises(LMUnexpectedError, match="not on this machine") as error:
        lost("Hi")
    assert isinstance(error.value.__cause__, ModelNotFoundError)


def test_nothing_here_warns(lm: LocalLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm("Hi", rollout_id=1)
