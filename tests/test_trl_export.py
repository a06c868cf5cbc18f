"""Data sets for TRL: what stands in them, what is left out, and that TRL's own trainers take them."""

import json
from dataclasses import replace

import dspy
import pyarrow.parquet
import pytest

from sirius_dspy import TRLExport, open_export
from sirius_dspy.errors import LibraryError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.writing import BATCH
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.testing.library import EXAMPLE, make_run, make_step
from sirius_dspy.trajectory import Attempt, Failure, Repair, Step, canonical
from tests import toy

WRITERS = ("sft", "dpo", "kto", "sdpo")
ABOUT = {"agent", "example", "trajectory"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl") / "run"
    with dspy.context(adapter=toy.ADAPTER):
        toy.optimizer(folder).compile(toy.student(), trainset=toy.examples(), valset=toy.examples(range(4, 12)))
    return folder


def write(export, to, path):
    return getattr(export, f"to_{to}")(path)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def exported(run_dir, to, tmp_path, **settings):
    export = open_export(run_dir, **settings)
    with export.library:
        done = write(export, to, tmp_path / f"{to}.jsonl")
    rows = lines(done.path)
    assert len(rows) == done.num_rows
    return rows, done


# What stands in them


def test_sft_rows_are_those_that_the_compile_trained_on(run_dir, tmp_path):
    for iteration in (1, 2):
        rows, done = exported(run_dir, "sft", tmp_path, iteration=iteration)
        for agent in ("doubler", "writer.predict"):
            trained = RunDir(run_dir).training_rows(iteration, agent) or []
            ours = {canonical([*row["prompt"], *row["completion"]]) for row in rows if row["agent"] == agent}
            assert {canonical(json.loads(line)["messages"]) for line in trained} == ours
            assert done.rows[agent] == len(ours) > 0


def test_a_pair_is_one_prompt_with_the_failed_and_the_repaired_reply(run_dir, tmp_path):
    rows, done = exported(run_dir, "dpo", tmp_path, iteration=1)
    assert {row["agent"] for row in rows} == {"doubler"}
    numbers = set()
    for row in rows:
        assert row.keys() == {"prompt", "chosen", "rejected"} | ABOUT
        number = int(row["prompt"][-1]["content"].split("]]\n")[1].split("\n")[0])
        numbers.add(number)
        assert f"\n{2 * number}\n" in row["chosen"][0]["content"]
        wrong = "no field header at all" if number == 7 else "no idea"  # what did not parse stands as it was written
        assert wrong in row["rejected"][0]["content"]
    assert numbers == {1, 3, 5, 7}
    assert done.left_out == {"writer.predict": {"has another prompt than in the failed run": 4}}


def test_prompts_hold_no_help_and_no_demonstrations(run_dir, tmp_path):
    for to in WRITERS:
        rows, _ = exported(run_dir, to, tmp_path)
        assert rows
        for row in rows:
            assert [message["role"] for message in row["prompt"]] == ["system", "user"]
            assert "feedback" not in json.dumps(row["prompt"])
            assert "(corrected)" not in json.dumps(row)


def test_kto_rows_are_good_and_bad_replies(run_dir, tmp_path):
    rows, _ = exported(run_dir, "kto", tmp_path)
    good, bad = ([row for row in rows if row["label"] is label] for label in (True, False))
    sft, _ = exported(run_dir, "sft", tmp_path)
    assert [{**row, "label": True} for row in sft] == [{key: row[key] for key in (*sft[0], "label")} for row in good]
    assert any("no idea" in row["completion"][0]["content"] for row in bad)
    assert any(row["completion"][0]["content"] == "no field header at all" for row in bad)


def test_sdpo_rows_have_the_feedback_that_led_to_a_repair(run_dir, tmp_path):
    rows, _ = exported(run_dir, "sdpo", tmp_path, iteration=1)
    assert {row["agent"] for row in rows} == {"doubler"}
    assert {row["privileged_context"] for row in rows} == {"double the number"}
    export = open_export(run_dir)
    with export.library as library:
        for row in rows:
            assert row["prompt"][-1]["role"] == "user"
            assert library.example(row["example"]).answer == f"ans:{2 * library.example(row['example']).number}"


def test_parquet_has_the_same_rows(run_dir, tmp_path):
    export = open_export(run_dir)
    with export.library:
        for to in WRITERS:
            write(export, to, tmp_path / f"{to}.jsonl")
            write(export, to, tmp_path / f"{to}.parquet")
            assert pyarrow.parquet.read_table(tmp_path / f"{to}.parquet").to_pylist() == lines(tmp_path / f"{to}.jsonl")


# What is left out

PROMPT = canonical([{"role": "user", "content": "2+2?"}])
OTHER_PROMPT = canonical([{"role": "user", "content": "3+3?"}])


def asked(answer="4", **fields):
    return make_step(answer=answer, **{"prompt": PROMPT, "signature": "s", **fields})


@pytest.fixture
def library(tmp_path):
    with ExperienceLibrary(tmp_path / "library.db") as opened:
        yield opened


@pytest.fixture
def export(library):
    return TRLExport(library, {"solver": ["solver"]}, toy.ADAPTER)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (asked(lm="openai/other"), "answered by another LM"),
        (asked(finish="length"), "cut off at the token limit"),
        (asked(inputs={"question": "2+2?", "hint_": "try"}), "has a hint of dspy.Refine"),
        (asked(prompt=None), "has no recorded prompt"),
        (asked(outputs=None, failure=Failure("AdapterParseError", "no field", "{half")), "the call failed"),
        (asked(outputs={"answer": {"$type": "tuple", "value": [1]}}), "holds a value of a class"),
        (asked(answer=" 4 "), "does not parse back"),
        (asked(prompt=canonical([{"role": "user", "content": [{"type": "image_url"}]}])), "has images or other media"),
    ],
)
def test_steps_that_teach_nothing_are_counted_with_their_reason(library, export, tmp_path, step, reason):
    library.add_all(
        [make_run(steps=(step,), sample=2), make_run(steps=(asked(),), sample=1), make_run(steps=(asked(),))]
    )
    done = replace(export, lms={"solver": {"openai/tiny"}}).to_sft(tmp_path / "sft.jsonl")
    assert done.rows == {"solver": 1}
    assert done.left_out == {"solver": {reason: 1, "duplicate": 1}}


def test_failed_and_validation_runs_and_other_agents_are_no_rows(library, export, tmp_path):
    library.add_all(
        [
            make_run(steps=(asked(),), reward=0.0),
            make_run(steps=(asked(),), origin="validation"),
            make_run(steps=(asked(predictor="judge"),)),
            make_run(steps=(asked(),), rewards={"solver": 0.0}),
        ]
    )
    done = export.to_sft(tmp_path / "sft.jsonl")
    assert (done.rows, done.left_out, lines(done.path)) == ({"solver": 0}, {}, [])
    assert export.to_dpo(tmp_path / "dpo.parquet").num_rows == 0


def repaired(library, wrong: Step, right: Step, feedback="Add."):
    failed = make_run("5", 0.0, steps=(wrong,))
    good = make_run("4", steps=(right,), origin="repair", parent=failed.id, edited=0)
    attempt = Attempt(0, "solver", "repaired", feedback, trajectory=good.id, reward=1.0)
    library.add(failed, EXAMPLE)
    library.add_repair(Repair(failed.id, (attempt,)), [good])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (asked("4"), "same reply in both runs"),
        (asked("5", lm="openai/other"), "answered by another LM"),
        (asked("5", finish="length"), "failed run: cut off at the token limit"),
        (
            asked("5", prompt=OTHER_PROMPT),
            "has another prompt than in the failed run",
        ),
        (asked(outputs=None, failure=Failure("TimeoutError", "late")), "failed run: the call failed"),
    ],
)
def test_pairs_that_teach_nothing_are_counted_with_their_reason(library, export, tmp_path, wrong, reason):
    repaired(library, wrong, asked("4"))
    done = replace(export, lms={"solver": {"openai/tiny"}}).to_dpo(tmp_path / "dpo.jsonl")
    assert (done.num_rows, done.left_out) == (0, {"solver": {reason: 1}})


def test_of_two_calls_with_one_prompt_the_edited_one_is_rejected(library, export, tmp_path):
    failed = make_run("5", 0.0, steps=(asked("right"), asked("wrong", occurrence=1)))
    good = make_run("4", steps=(asked("right"), asked("4", occurrence=1)), origin="repair", parent=failed.id, edited=1)
    library.add_all([failed, good])
    export.to_dpo(tmp_path / "dpo.jsonl")
    (row,) = lines(tmp_path / "dpo.jsonl")
    assert "wrong" in row["rejected"][0]["content"]


def test_a_repair_without_feedback_is_no_row_for_sdpo(library, export, tmp_path):
    repaired(library, asked("5"), asked("4"), feedback=None)
    done = export.to_sdpo(tmp_path / "sdpo.jsonl")
    assert (done.num_rows, done.left_out) == (0, {"solver": {"repaired without feedback": 1}})


def test_advice_stands_under_the_prompt_for_which_it_was_given(library, export, tmp_path):
    failed = make_run("5", 0.0, steps=(asked("5"), asked("5", occurrence=1)))
    steps = (asked("4", source="edited"), asked("8", occurrence=1, prompt=OTHER_PROMPT, source="edited"))
    good = make_run("8", steps=steps, origin="repair", parent=failed.id, edited=0)
    attempts = (Attempt(0, "solver", "failed", "Add."), Attempt(1, "solver", "repaired", "Even.", trajectory=good.id))
    library.add(failed, EXAMPLE)
    library.add_repair(Repair(failed.id, attempts), [good])
    export.to_sdpo(tmp_path / "sdpo.jsonl")
    (row,) = lines(tmp_path / "sdpo.jsonl")
    assert (row["prompt"][-1]["content"], row["privileged_context"]) == ("3+3?", "Even.")


def test_values_that_are_no_text_are_written_as_the_adapter_does(library, export, tmp_path):
    outputs = {"number": 4, "words": ["a", "b"], "is_right": True, "table": {"x": 1.5}}
    library.add(make_run(steps=(asked(outputs=outputs),)))
    export.to_sft(tmp_path / "sft.jsonl")
    (row,) = lines(tmp_path / "sft.jsonl")
    signature = dspy.Signature("question -> number: int, words: list[str], is_right: bool, table: dict[str, float]")
    assert toy.ADAPTER.parse(signature, row["completion"][0]["content"]) == outputs


def test_rows_are_streamed(library, export, tmp_path):
    """The file grows while the library is still being read."""
    library.add_all(make_run(steps=(asked(str(number)),), sample=number) for number in range(2 * BATCH))
    most = []
    read = library.trajectories

    def watched(**filters):
        for run in read(**filters):
            most.append(max((path.stat().st_size for path in tmp_path.glob(".sft.jsonl.*")), default=0))
            yield run

    library.trajectories = watched
    assert export.to_sft(tmp_path / "sft.jsonl").num_rows == 2 * BATCH
    assert most[0] < most[BATCH] < most[-1]


# Bad input


def test_a_file_of_another_kind_is_refused_before_anything_is_read(export, tmp_path):
    for to in WRITERS:
        with pytest.raises(LibraryError, match=r"'\.csv', expected one of"):
            write(export, to, tmp_path / "rows.csv")
    assert list(tmp_path.glob("rows*")) == []


def test_a_folder_that_is_no_run_dir_is_refused(tmp_path):
    for where in (tmp_path, tmp_path / "nowhere", "sqlite:///x.db"):
        with pytest.raises(LibraryError, match="not the folder of a compile"):
            open_export(where)


def test_a_table_of_the_user_may_name_a_class(library, export, tmp_path):
    step = asked(outputs={"answer": {"class": ["mammal"], "value": 4}})
    library.add_all([make_run(steps=(step,))])
    export.to_sft(tmp_path / "rows.jsonl")
    (row,) = lines(tmp_path / "rows.jsonl")
    assert '{"class": ["mammal"], "value": 4}' in row["completion"][0]["content"]


def test_an_adapter_of_an_own_class_must_be_passed(run_dir, tmp_path):
    import shutil

    folder = shutil.copytree(run_dir, tmp_path / "run")
    identity = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({**identity, "adapter": "mine.Adapter"}), encoding="utf-8")
    with pytest.raises(LibraryError, match=r"'mine\.Adapter'.*adapter=\.\.\."):
        open_export(folder)
    export = open_export(folder, adapter=toy.ADAPTER)
    with export.library:
        assert export.to_dpo(tmp_path / "dpo.jsonl").num_rows > 0
