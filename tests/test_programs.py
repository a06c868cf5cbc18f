import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import dspy
import pytest

from programs import needle_haystack, pubmedqa
from sirius_dspy.demo.majority import best_trivial_rule, majority_baseline
from sirius_dspy.errors import DatasetError, MissingDependencyError
from sirius_dspy.testing import ScriptedLM, chat_reply
from tests import ROOT

SPLITS = ("train", "validation", "test")
CHAT = dspy.ChatAdapter(use_json_adapter_fallback=False)
JAZZ = dspy.Example(
    context="Jazz adores trail running. Craig eschews ballet dancing. Orrin resents wolves. "
    "Leigh adores playing ping pong.",
    question="Who adores trail running?",
    answer="Jazz",
).with_inputs("context", "question")


def find_and_name(prompt):
    if prompt.asks_for("relevant"):
        phrase = prompt.field("question").removeprefix("Who ").split("?")[0]
        return chat_reply(relevant=next(s for s in prompt.field("context").split(". ") if phrase in s))
    return chat_reply(answer=prompt.field("relevant").split()[0])


def test_needle_haystack_runs_end_to_end():
    program = needle_haystack.build()
    lm = ScriptedLM(find_and_name)
    program.set_lm(lm)
    examples = [JAZZ, *needle_haystack.examples("test", 5)]
    with dspy.context(adapter=CHAT):
        scores = [needle_haystack.metric(e, program(**e.inputs())) for e in examples]
        scores += [needle_haystack.metric(e, asyncio.run(program.acall(**e.inputs()))) for e in examples]
    assert scores == [1.0] * 12
    assert lm.calls == 24
    assert [name for name, _ in program.named_predictors()] == ["analyst", "solver"]
    assert lm.requests[1].field("context") is None  # all the solver knows of it is `relevant`


def test_needle_haystack_examples_are_the_same_in_every_process():
    script = "from programs.needle_haystack import examples; print([e.toDict() for e in examples('train', 20, 3)])"
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([e.toDict() for e in needle_haystack.examples("train", 20, 3)])


def test_needle_haystack_splits_never_share_a_question():
    questions = {split: set() for split in SPLITS}
    for seed in range(3):
        for split in SPLITS:
            found = needle_haystack.examples(split, 150, seed)
            assert len({e.question for e in found}) == len({e.dspy_key for e in found}) == 150
            questions[split] |= {e.question for e in found}
    assert not questions["train"] & questions["validation"]
    assert not questions["test"] & (questions["train"] | questions["validation"])


def test_needle_haystack_items_are_of_one_kind():
    for split in SPLITS:
        for example in needle_haystack.examples(split, 60, seed=1):
            phrase = example.question.removeprefix("Who ").removesuffix("?")
            assert f"{example.answer} {phrase}." in example.context
            assert 4 <= example.context.count(".") <= 6
            assert set(example.inputs().keys()) == {"context", "question"}


def test_needle_haystack_seeds_differ_and_sizes_are_prefixes():
    few, many = needle_haystack.examples("test", 10, 1), needle_haystack.examples("test", 40, 1)
    assert [e.toDict() for e in few] == [e.toDict() for e in many[:10]]
    assert not {e.context for e in many} & {e.context for e in needle_haystack.examples("test", 40, 2)}


def test_needle_haystack_demonstrations_cannot_be_generated():
    from reasoning_gym.cognition.needle_data import SUBJECTS, VERBS

    generated = {f"Who {verb} {subject}?" for verb in VERBS for subject in SUBJECTS}
    program, shown = needle_haystack.build(), needle_haystack.demonstrations()
    for name, predictor in program.named_predictors():
        assert len(shown[name]) == 4
        for demo in shown[name]:
            assert demo.question not in generated
            assert set(demo.inputs().keys()) == set(predictor.signature.input_fields)
            assert set(demo.labels().keys()) == set(predictor.signature.output_fields)
    for found, named in zip(shown["analyst"], shown["solver"], strict=True):
        assert found.relevant == named.relevant
        assert found.relevant in found.context
        assert needle_haystack.metric(named, dspy.Prediction(answer=found.relevant.split()[0])) == 1.0


@pytest.mark.parametrize("arguments", [("dev", 5, 0), ("train", 0, 0), ("train", 5, -1)])
def test_needle_haystack_refuses_what_it_cannot_serve(arguments):
    with pytest.raises(DatasetError, match="expected"):
        needle_haystack.examples(*arguments)


def test_needle_haystack_without_reasoning_gym_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sirius-dspy\[local\]'"):
        needle_haystack.examples("train", 1)


def test_the_best_trivial_rule_is_a_rule_or_the_constant():
    examples = [dspy.Example(text=text, answer=answer) for text, answer in (("a b", "b"), ("c b", "b"), ("b d", "d"))]
    assert best_trivial_rule(examples, lambda example: example.text.split()) == 1.0
    assert best_trivial_rule(examples, lambda example: ("x", "y")) == pytest.approx(2 / 3)
    with pytest.raises(DatasetError):
        best_trivial_rule([], lambda example: ("x", "y"))


def test_majority_baseline():
    assert majority_baseline([dspy.Example(answer=a) for a in ("yes", "no", "yes", "maybe")]) == 0.5
    with pytest.raises(DatasetError):
        majority_baseline([])


LABELS = ["yes"] * 11 + ["no"] * 7 + ["maybe"] * 2
SECRET = "the conclusion that nobody may see"


def write_pubmedqa(folder, labels=LABELS):
    """Twice these labels, in the source's format; the odd PMIDs are the test half."""
    records = {
        str(1000 + number): {
            "QUESTION": f"Does treatment {number} work?",
            "CONTEXTS": [f"We gave {number} pills.", "We counted."],
            "LABELS": ["METHODS", "RESULTS"],
            "MESHES": ["Humans"],
            "YEAR": "2011",
            "reasoning_required_pred": SECRET,
            "reasoning_free_pred": SECRET,
            "final_decision": label,
            "LONG_ANSWER": SECRET,
        }
        for number, label in enumerate(label for label in labels for _ in range(2))
    }
    gold = {pmid: record["final_decision"] for pmid, record in records.items() if int(pmid) % 2}
    (folder / "ori_pqal.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "test_ground_truth.json").write_text(json.dumps(gold), encoding="utf-8")
    return folder / "ori_pqal.json"


def labels_of(examples):
    return Counter(e.answer for e in examples)


@pytest.mark.parametrize("analyst_sees_question", [False, True])
def test_pubmedqa_runs_end_to_end(tmp_path, analyst_sees_question):
    program = pubmedqa.build(analyst_sees_question)
    lm = ScriptedLM(lambda p: chat_reply(summary="It works.") if p.asks_for("summary") else chat_reply(answer="Yes."))
    program.set_lm(lm)
    example = next(e for e in pubmedqa.examples("test", path=write_pubmedqa(tmp_path)) if e.answer == "yes")
    with dspy.context(adapter=CHAT):
        assert pubmedqa.metric(example, program(**example.inputs())) == 1.0
        assert pubmedqa.metric(example, asyncio.run(program.acall(**example.inputs()))) == 1.0
    analyst, solver = lm.requests[:2]
    assert analyst.field("context") == example.context
    assert analyst.field("question") == (example.question if analyst_sees_question else None)
    assert (solver.field("summary"), solver.field("context")) == ("It works.", None)


def test_pubmedqa_splits_are_the_official_halves_stratified(tmp_path):
    path = write_pubmedqa(tmp_path)
    found = {split: pubmedqa.examples(split, path=path, seed=5) for split in SPLITS}
    assert {split: len(items) for split, items in found.items()} == {"train": 16, "validation": 4, "test": 20}
    assert labels_of(found["test"]) == Counter(LABELS)
    assert labels_of(found["validation"]) + labels_of(found["train"]) == Counter(LABELS)
    for size in range(1, 21):
        for label, count in labels_of(pubmedqa.examples("test", size=size, path=path)).items():
            assert abs(count - size * LABELS.count(label) / 20) <= 1
    keys = [e.dspy_key for items in found.values() for e in items]
    assert len(set(keys)) == 40
    assert all(int(e.dspy_key) % 2 for e in found["test"])


def test_pubmedqa_seed_moves_validation_and_order_only(tmp_path):
    path = write_pubmedqa(tmp_path)

    def keys(split, seed):
        return [e.dspy_key for e in pubmedqa.examples(split, path=path, seed=seed)]

    assert keys("validation", 1) == keys("validation", 1)
    assert set(keys("validation", 1)) != set(keys("validation", 2))
    assert keys("test", 1) != keys("test", 2)
    assert set(keys("test", 1)) == set(keys("test", 2))


def test_pubmedqa_never_shows_the_conclusion(tmp_path):
    for split in SPLITS:
        for example in pubmedqa.examples(split, path=write_pubmedqa(tmp_path)):
            assert set(example.keys()) == {"context", "question", "answer"}
            assert set(example.inputs().keys()) == {"context", "question"}
            assert SECRET not in str(example.toDict())


def test_pubmedqa_from_the_hub_has_the_same_split(tmp_path, monkeypatch):
    test_pmids = Path(pubmedqa.__file__).with_name("pubmedqa_test_pmids.txt").read_text().split()
    rows = [
        {
            "pubid": pmid,
            "question": "Does it work?",
            "context": {"contexts": ["We gave pills.", "We counted."], "labels": ["A", "B"]},
            "long_answer": SECRET,
            "final_decision": "yes",
        }
        for pmid in [*map(int, test_pmids), *range(1, 11)]
    ]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    test = pubmedqa.examples("test")
    assert sorted(e.dspy_key for e in test) == sorted(test_pmids)
    assert test[0].context == "We gave pills.\nWe counted."
    assert len(pubmedqa.examples("train")) == 8
    assert SECRET not in str([e.toDict() for e in test])


def test_pubmedqa_without_the_hub_says_how_to_go_on(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DatasetError, match=r"offline.*path="):
        pubmedqa.examples("test")


def damage_missing(path):
    path.unlink()


def damage_gold_missing(path):
    path.with_name("test_ground_truth.json").unlink()


def damage_json(path):
    path.write_text('{"1": ')


def damage_shape(path):
    path.write_text("[1, 2]")


def damage_fields(path):
    path.write_text('{"1": {"question": "?"}}')


def damage_label(path):
    path.write_text('{"1": {"QUESTION": "?", "CONTEXTS": ["c"], "final_decision": "perhaps"}}')


def damage_pmids(path):
    path.with_name("test_ground_truth.json").write_text('{"77": "yes"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, r"ori_pqal\.json.*cannot be read.*Get"),
        (damage_gold_missing, r"test_ground_truth\.json.*cannot be read.*Get"),
        (damage_json, "not JSON"),
        (damage_shape, "holds list"),
        (damage_fields, "QUESTION"),
        (damage_label, "'perhaps'"),
        (damage_pmids, "'77'"),
    ],
)
def test_pubmedqa_says_what_is_wrong_with_a_file(tmp_path, damage, message):
    path = write_pubmedqa(tmp_path)
    damage(path)
    with pytest.raises(DatasetError, match=message):
        pubmedqa.examples("train", path=path)


@pytest.mark.parametrize(("split", "size"), [("dev", None), ("test", 0), ("test", 21), ("validation", 5)])
def test_pubmedqa_refuses_what_it_cannot_serve(tmp_path, split, size):
    with pytest.raises(DatasetError, match="expected"):
        pubmedqa.examples(split, size, path=write_pubmedqa(tmp_path))


@pytest.mark.skipif("SIRIUS_DATA" not in os.environ, reason="SIRIUS_DATA names no folder with pubmedqa/ori_pqal.json")
def test_pubmedqa_counts_of_the_real_file():
    path = Path(os.environ["SIRIUS_DATA"]) / "pubmedqa" / "ori_pqal.json"
    found = {split: pubmedqa.examples(split, path=path) for split in SPLITS}
    assert labels_of(found["test"]) == {"yes": 276, "no": 169, "maybe": 55}
    assert labels_of(found["train"] + found["validation"]) == {"yes": 276, "no": 169, "maybe": 55}
    assert labels_of(found["validation"]) == {"yes": 55, "no": 34, "maybe": 11}
    assert majority_baseline(found["test"]) == 0.552
    shipped = Path(pubmedqa.__file__).with_name("pubmedqa_test_pmids.txt").read_text().split()
    assert {e.dspy_key for e in found["test"]} == set(shipped)
