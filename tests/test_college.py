import asyncio
import csv
import json
import os
from collections import Counter
from pathlib import Path

import datasets
import dspy
import pytest

from programs import college, college_data
from sirius_dspy.demo.majority import majority_baseline
from sirius_dspy.errors import DatasetError
from sirius_dspy.running.record import record
from sirius_dspy.testing import ScriptedLM, chat_reply

SPLITS = ("train", "validation", "test")
SUBJECTS = ("physics", "chemistry")


pytestmark = pytest.mark.usefixtures("chat_adapter")


@pytest.fixture(autouse=True)
def hub_not_asked_yet():
    college._gpqa_of_hub.cache_clear()


# Small files in the formats of the sources


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
    return path


def mmlu_rows(count=30, twins=6):
    """Questions of which the first `twins` come a second time, in other punctuation and order of options."""
    rows = [
        [f"How heavy is body {n}?", f"{n} kg", f"{n + 1} kg", f"{n + 2} kg", f"{n + 3} kg", n % 4] for n in range(count)
    ]
    again = [[f"how heavy is body {n} ?", *reversed(rows[n][1:5]), 3 - rows[n][5]] for n in range(twins)]
    return rows + again


def write_mmlu(folder, rows=None):
    return write_csv(folder / "mmlu.csv", college_data._MMLU_HEADER, mmlu_rows() if rows is None else rows)


def theorem(number, answer, kind, field="Physics", picture=None):
    return {
        "Question": f"What is quantity {number}?",
        "Answer": answer,
        "Answer_type": kind,
        "Picture": picture,
        "source": "self",
        "id": f"someone/q{number}.json",
        "explanation": "NONE",
        "theorem": "a theorem",
        "subfield": "Mechanics",
        "field": field,
    }


THEOREMS = [theorem(n, n + 0.5, "float", picture="images/q.png" if n < 3 else None) for n in range(12)]
THEOREMS += [
    theorem(20, 7, "integer"),
    theorem(21, [1, 2], "list of integer"),
    theorem(22, [0.5, 2.0], "list of float"),
]
THEOREMS += [theorem(23, "(b)", "option"), theorem(24, True, "bool"), theorem(25, 1.0, "float", field="Math")]


def write_theoremqa(folder, records=THEOREMS):
    path = folder / "theoremqa.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


GPQA_HEADER = ["Record ID", "Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2"]
GPQA_HEADER += ["Incorrect Answer 3", "High-level domain", "Subdomain"]


def write_gpqa(folder):
    domains = ["Physics"] * 9 + ["Chemistry"] * 6 + ["Biology"] * 3
    rows = [[f"rec{n}", f"Hard question {n}?", "right", "wrong", "bad", "off", d, ""] for n, d in enumerate(domains)]
    return write_csv(folder / "gpqa.csv", GPQA_HEADER, rows)


def write_redux(folder, faults):
    """Marks for all MMLU questions but the last; `faults` by number."""
    rows = [
        [row[0].upper(), str(row[1:5]), row[5], faults.get(number, "OK"), "exam", "", ""]
        for number, row in enumerate(mmlu_rows()[:-1])
    ]
    header = ["question", "choices", "answer", "error_type", "source", "correct_answer", "potential_reason"]
    return write_csv(folder / "redux.csv", header, rows)


def files(folder, **more):
    return {"mmlu": write_mmlu(folder), "theoremqa": write_theoremqa(folder), "gpqa": write_gpqa(folder), **more}


def all_examples(subject="physics", seed=0, **options):
    return {split: college.examples(subject, split, seed=seed, **options) for split in SPLITS}


# Programs


def replies(prompt):
    if prompt.asks_for("concepts"):
        return chat_reply(concepts="Weight is mass times g.")
    if prompt.asks_for("solution"):
        return chat_reply(solution="m = 2 kg")
    return chat_reply(answer="The masses fit.\nAnswer: (C) 2 kg")


QUESTION = dspy.Example(
    question="How heavy?\nA) 0 kg\nB) 1 kg\nC) 2 kg\nD) 3 kg",
    answer_form="the letter of the right option",
    answer="C",
    dspy_answer_type="choice",
).with_inputs("question", "answer_form")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_team_runs_end_to_end_and_sees_what_the_paper_says(subject):
    program = college.build(subject)
    program.set_lm(ScriptedLM(replies))
    recording = record(program, QUESTION.inputs())
    assert college.metric(QUESTION, recording.prediction) == 1.0
    assert college.metric(QUESTION, asyncio.run(program.acall(**QUESTION.inputs()))) == 1.0
    expert = "physicist" if subject == "physics" else "chemist"
    assert [(step.predictor, set(step.inputs)) for step in recording.steps] == [
        (expert, {"question"}),
        ("mathematician", {"question", "concepts"}),
        ("summarizer", {"question", "concepts", "solution", "answer_form"}),
    ]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_single_agent_does_all_of_it(subject):
    program = college.build(subject, single=True)
    lm = ScriptedLM(replies)
    program.set_lm(lm)
    assert college.metric(QUESTION, program(**QUESTION.inputs())) == 1.0
    assert [name for name, _ in program.named_predictors()] == ["solver"]


def test_chemistry_never_talks_of_physicists():
    for single in (False, True):
        for _, predictor in college.build("chemistry", single).named_predictors():
            assert "physic" not in str(predictor.signature).lower()
            assert "{" not in predictor.signature.instructions


def test_trained_programs_can_be_built_from_their_class():
    assert college.CollegePhysics().edges == college.build("physics").edges
    assert college.CollegeChemistry().edges == college.build("chemistry").edges


# Data


def test_examples_show_the_question_and_the_form_only(tmp_path):
    found = [e for items in all_examples(**files(tmp_path)).values() for e in items]
    assert {tuple(e.inputs().keys()) for e in found} == {("question", "answer_form")}
    assert {tuple(e.labels().keys()) for e in found} == {("answer",)}
    by_type = {e.dspy_answer_type: e for e in found}
    assert set(by_type) == {"choice", "float", "integer", "list of integer", "list of float", "option", "bool"}
    assert by_type["integer"].answer == "7"
    assert by_type["list of float"].answer == "[0.5, 2.0]"
    assert by_type["bool"].answer == "true"
    assert by_type["list of integer"].answer_form == "a list of whole numbers, such as [1, 2]"


def test_options_are_lettered_lines_and_the_gold_letter_fits(tmp_path):
    for example in college.examples("physics", "train", sources=("mmlu",), mmlu=write_mmlu(tmp_path)):
        question, *options = example.question.split("\n")
        number = int("".join(filter(str.isdigit, question)))
        assert [option[:3] for option in options] == ["A) ", "B) ", "C) ", "D) "]
        assert f"{example.answer}) {number + number % 4} kg" in options
        assert college.metric(example, dspy.Prediction(answer=f"So:\nAnswer: ({example.answer})")) == 1.0


def test_sizes_are_the_papers(tmp_path):
    """Two thirds, rounded down, per source: 36 -> 24/12, 17 -> 11/6, 9 -> 6/3."""
    found = all_examples(**files(tmp_path))
    counts = {split: Counter(e.dspy_source for e in items) for split, items in found.items()}
    assert counts["test"] == {"mmlu": 12, "theoremqa": 6, "gpqa": 3}
    assert counts["train"] + counts["validation"] == {"mmlu": 24, "theoremqa": 11, "gpqa": 6}
    assert counts["validation"] == {"mmlu": 5, "theoremqa": 2, "gpqa": 1}
    assert [n * 2 // 3 for n in (102, 100, 86, 93, 131)] == [68, 66, 57, 62, 87]


@pytest.mark.parametrize("seed", range(5))
def test_twins_are_never_parted(tmp_path, seed):
    found = all_examples(seed=seed, sources=("mmlu",), mmlu=write_mmlu(tmp_path))
    keys = {split: {e.dspy_key for e in items} for split, items in found.items()}
    assert sum(map(len, found.values())) == 36
    assert sum(map(len, keys.values())) == 30
    assert len(set().union(*keys.values())) == 30


def test_the_split_does_not_depend_on_the_order_of_the_file(tmp_path):
    options = {"sources": ("mmlu",), "mmlu": write_mmlu(tmp_path)}
    before = [e.toDict() for e in college.examples("physics", "test", **options)]
    write_mmlu(tmp_path, mmlu_rows()[::-1])
    assert [e.toDict() for e in college.examples("physics", "test", **options)] == before
    assert [e.toDict() for e in college.examples("physics", "test", seed=1, **options)] != before


def test_sizes_are_prefixes(tmp_path):
    options = files(tmp_path)
    many = college.examples("physics", "train", **options)
    assert [e.toDict() for e in college.examples("physics", "train", 7, **options)] == [e.toDict() for e in many[:7]]


def test_the_original_mmlu_files_have_letters_and_no_header(tmp_path):
    rows = [[*row[:5], "ABCD"[row[5]]] for row in mmlu_rows()]
    plain = write_csv(tmp_path / "original.csv", None, rows)
    assert college_data.mmlu("physics", plain) == college_data.mmlu("physics", write_mmlu(tmp_path))


def test_pictures_are_marked_and_can_be_left_out(tmp_path):
    options = {"sources": ("theoremqa",), "theoremqa": write_theoremqa(tmp_path)}
    everything, without = all_examples(**options), all_examples(drop_pictures=True, **options)
    assert sum(e.dspy_picture for items in everything.values() for e in items) == 3
    for split in SPLITS:
        assert [e.toDict() for e in without[split]] == sorted_like(
            everything[split], lambda e: not e.dspy_picture, without
        )


def sorted_like(items, keep, reference):
    """What should be left of a split, in the order of the reference."""
    left = [e.toDict() for e in items if keep(e)]
    order = [e.toDict() for found in reference.values() for e in found]
    return sorted(left, key=order.index)


def test_faulty_items_can_be_kept_dropped_or_marked(tmp_path):
    redux = write_redux(tmp_path, {3: "Wrong groundtruth", 8: "Bad Question Clarity"})
    options = {"sources": ("mmlu",), "mmlu": write_mmlu(tmp_path), "redux": redux}
    kept, dropped, marked = (all_examples(faulty=faulty, **options) for faulty in ("keep", "drop", "mark"))
    marks = Counter(e.dspy_fault for items in marked.values() for e in items)
    assert marks == {"ok": 33, "wrong_groundtruth": 1, "bad_question_clarity": 1, "unchecked": 1}
    assert sum(map(len, dropped.values())) == sum(map(len, kept.values())) - 2
    assert all("dspy_fault" not in e for items in kept.values() for e in items)
    for split in SPLITS:
        sound = {e.question for e in marked[split] if e.dspy_fault in ("ok", "unchecked")}
        assert {e.question for e in dropped[split]} == sound


def test_a_fault_is_not_confused_with_a_question_that_differs_in_signs_only(tmp_path):
    rows = [["Lines with J << a?", "3", "9", "5", "7", 1], ["Lines with J >> a?", "3", "9", "5", "7", 3]]
    header = ["question", "choices", "answer", "error_type"]
    marks = [
        [row[0], str(row[1:5]), row[5], fault] for row, fault in zip(rows, ("OK", "Wrong groundtruth"), strict=True)
    ]
    found = college_data.faults("chemistry", write_csv(tmp_path / "redux.csv", header, marks))
    items = college_data.mmlu("chemistry", write_mmlu(tmp_path, rows))
    assert [found[item.twin] for item in items] == ["ok", "wrong_groundtruth"]
    assert items[0].group == items[1].group


def test_options_are_permuted_by_seed_only(tmp_path):
    options = {"sources": ("mmlu",), "mmlu": write_mmlu(tmp_path)}
    plain = college.examples("physics", "train", **options)
    one, again, other = (college.examples("physics", "train", option_seed=seed, **options) for seed in (1, 1, 2))
    assert [e.toDict() for e in one] == [e.toDict() for e in again]
    assert [e.question for e in one] != [e.question for e in other]
    assert [sorted(e.question.split("\n")[1:], key=lambda o: o[3:])[0][3:] for e in one] == [
        sorted(e.question.split("\n")[1:], key=lambda o: o[3:])[0][3:] for e in plain
    ]
    for before, after in zip(plain, one, strict=True):
        assert right_option(before) == right_option(after)


def right_option(example):
    return next(line[3:] for line in example.question.split("\n") if line.startswith(f"{example.answer}) "))


def test_gpqa_has_its_own_domain_and_a_moved_right_option(tmp_path):
    for subject, count in (("physics", 9), ("chemistry", 6)):
        found = all_examples(subject, sources=("gpqa",), gpqa=write_gpqa(tmp_path))
        items = [e for split in found.values() for e in split]
        assert len(items) == count
        assert {right_option(e) for e in items} == {"right"}
        assert len({e.answer for e in items}) > 1


def offline(*_, **__):
    raise ConnectionError("offline")


def test_without_gpqa_the_others_go_on_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", offline)
    options = files(tmp_path, gpqa=None)
    with pytest.warns(UserWarning, match=r"College physics goes on without GPQA: .*sources=\('mmlu', 'theoremqa'\)"):
        found = college.examples("physics", "test", **options)
    assert {e.dspy_source for e in found} == {"mmlu", "theoremqa"}
    with pytest.raises(DatasetError, match=r"nowhere\.csv"):
        college.examples("physics", "test", **files(tmp_path, gpqa=tmp_path / "nowhere.csv"))


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path, monkeypatch):
    asked = []

    def unreachable(*arguments, **settings):
        asked.append(arguments)
        offline()

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for split in SPLITS:
        with pytest.warns(UserWarning, match="goes on without GPQA"):
            college.examples("physics", split, **files(tmp_path, gpqa=None))
    assert len(asked) == 1


def test_without_the_hub_it_is_said_how_to_go_on(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DatasetError, match=r"'cais/mmlu'.*offline.*path of a local file"):
        college.examples("chemistry", "test", sources=("mmlu",))


def test_the_hub_gives_the_same_items(tmp_path, monkeypatch):
    shipped = college_data._PHYSICS_OF_THEOREMQA.read_text().splitlines()[1:]
    names = {college_data.question_hash(record["Question"]) for record in THEOREMS[:3]}
    hashes = tmp_path / "hashes.txt"
    lines = [
        college_data.question_hash(record["Question"]) + (" picture" if record["Picture"] else "")
        for record in THEOREMS
        if record["field"] == "Physics"
    ]
    hashes.write_text("\n".join(["# comment", *lines]))
    monkeypatch.setattr(college_data, "_PHYSICS_OF_THEOREMQA", hashes)
    columns = ("Question", "Answer", "Answer_type", "Picture")
    hub = {
        ("cais/mmlu", "college_physics"): [
            {"question": row[0], "subject": "college_physics", "choices": row[1:5], "answer": row[5]}
            for row in mmlu_rows()
        ],
        ("TIGER-Lab/TheoremQA", None): [
            {name: str(record[name]) if name == "Answer" else record[name] for name in columns} for record in THEOREMS
        ],
        ("Idavidrein/gpqa", "gpqa_diamond"): list(csv.DictReader(write_gpqa(tmp_path).read_text().splitlines())),
        ("edinburgh-dawg/mmlu-redux", "college_physics"): [
            {"question": row[0], "choices": row[1:5], "answer": row[5], "error_type": "ok"} for row in mmlu_rows()[:-1]
        ],
    }
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list(hub[name, config])
    )
    local = all_examples(faulty="mark", redux=write_redux(tmp_path, {}), **files(tmp_path))
    remote = all_examples(faulty="mark")
    for split in SPLITS:
        assert [e.toDict() for e in remote[split]] == [e.toDict() for e in local[split]]
        assert [e.dspy_picture for e in remote[split]] == [e.dspy_picture for e in local[split]]
    assert len(shipped) == 130
    assert not names & {line.split()[0] for line in shipped}


# What is wrong with a file


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        ("mmlu", "q,a,b,c,d,7\n", r"Row 1 of .*mmlu.csv.*answer '7'"),
        ("mmlu", "q,a,b,c,0\n", r"Row 1 of"),
        ("mmlu", "q,a,b,c,d,x\n", r"Row 1 of"),
        ("mmlu", "question,choice0,choice1,choice2,choice3,answer\n", "has no rows"),
        ("mmlu", "", "has no rows"),
        ("mmlu", "<html>404</html>", "Row 1 of"),
        ("theoremqa", "{", "is not JSON"),
        ("theoremqa", "{}", "holds dict"),
        ("theoremqa", '[{"Question": "q"}]', "Row 1 of .*Answer_type"),
        ("theoremqa", json.dumps([theorem(1, "2 m", "float")]), "Gold answer '2 m' of type 'float'"),
        ("theoremqa", json.dumps([theorem(1, 2.0, "complex")]), "type 'complex'"),
        ("theoremqa", json.dumps([THEOREMS[0], theorem(1, None, "float")]), "Row 2 of .*Gold answer"),
        ("theoremqa", json.dumps([theorem(1, 2.0, "float", field="Math")]), "has no rows"),
        ("gpqa", "Question,Answer\nq,a\n", "Row 1 of .*High-level domain"),
        ("gpqa", "Question,High-level domain\nq,Physics\n", "Correct Answer"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path, source, text, message):
    path = tmp_path / f"{source}.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        college.examples("physics", "train", sources=(source,), **{source: path})


def test_a_mask_of_another_format_is_refused(tmp_path):
    redux = tmp_path / "redux.csv"
    for text in (
        "question,choices,answer,error_type\nq,__import__('os'),0,OK\n",
        "a,b\n1,2\n",
        "question,choices,answer\nq,[],0\n",
    ):
        redux.write_text(text)
        with pytest.raises(DatasetError, match=r"Row 1 of .*redux\.csv"):
            college.examples(
                "physics", "test", sources=("mmlu",), mmlu=write_mmlu(tmp_path), redux=redux, faulty="drop"
            )


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "mmlu.csv"
    path.write_bytes(b"\xff\xfe\x00\x80" * 9)
    with pytest.raises(DatasetError, match="cannot be read"):
        college_data.mmlu("physics", path)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("biology", "test"), {}),
        (("physics", "dev"), {}),
        (("physics", "test"), {"faulty": "hide"}),
        (("physics", "test"), {"sources": ("mmlu", "arc")}),
        (("physics", "test"), {"sources": "mmlu"}),
        (("physics", "test"), {"sources": ()}),
        (("physics", "test", 0), {}),
        (("physics", "test", 1000), {}),
    ],
)
def test_arguments_that_cannot_be_served_are_refused(tmp_path, arguments, options):
    with pytest.raises(DatasetError, match="expected"):
        college.examples(*arguments, **(files(tmp_path) | options))


def test_an_unknown_subject_has_no_program():
    with pytest.raises(DatasetError, match="'biology'"):
        college.build("biology")


# Scores


def test_the_metric_follows_the_type_and_unparseable_is_counted_apart(tmp_path):
    found = [e for items in all_examples(**files(tmp_path)).values() for e in items]
    for example in found:
        assert college.metric(example, dspy.Prediction(answer=f"Work.\nAnswer: {example.answer}")) == 1.0
        assert college.parse(example, f"Answer: {example.answer}") is not None
        for reply in ("I do not know", "A photon has 0.5 of it\nand 7 more", ""):
            assert college.metric(example, dspy.Prediction(answer=reply)) == 0.0
            assert college.parse(example, reply) is None
    number = next(e for e in found if e.dspy_answer_type == "float" and e.answer == "10.5")
    assert college.metric(number, dspy.Prediction(answer="Answer: 10.9 N")) == 1.0


@pytest.mark.skipif(
    "SIRIUS_DATA" not in os.environ, reason="SIRIUS_DATA names no folder with mmlu, theoremqa, mmlu_redux"
)
def test_counts_of_the_real_files():
    folder = Path(os.environ["SIRIUS_DATA"])
    problems = college_data.theoremqa(folder / "theoremqa" / "theoremqa_test.json")
    assert (len(problems), sum(item.has_picture for item in problems)) == (131, 17)
    shipped = {line.split()[0] for line in college_data._PHYSICS_OF_THEOREMQA.read_text().splitlines()[1:]}
    assert {college_data.question_hash(item.question) for item in problems} == shipped
    physics = college_data.mmlu("physics", folder / "mmlu" / "college_physics_test.csv")
    groups = Counter(item.group for item in physics)
    assert (len(physics), len(groups), sorted(groups.values())[-20:]) == (102, 83, [1] + [2] * 19)
    chemistry = folder / "mmlu" / "college_chemistry_test.csv"
    marks = college_data.faults("chemistry", folder / "mmlu_redux" / "mmlu_college_chemistry.csv")
    assert Counter(marks[item.twin] for item in college_data.mmlu("chemistry", chemistry)) == {
        "ok": 75,
        "wrong_groundtruth": 21,
        "no_correct_answer": 2,
        "bad_question_clarity": 2,
    }
    test = college.examples("chemistry", "test", sources=("mmlu",), mmlu=chemistry)
    assert len(test) == 34
    assert 0.25 < majority_baseline(test) < 0.6
