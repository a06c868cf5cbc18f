import dspy
import pytest

from metrics.classes import class_report
from metrics.exact_word import exact_word
from metrics.yes_no_maybe import parse, yes_no_maybe
from sirius_dspy.errors import DatasetError

JAZZ = dspy.Example(question="Who adores trail running?", answer="Jazz").with_inputs("question")
NO = dspy.Example(question="Does it help?", answer="no").with_inputs("question")

NO_ANSWERS = [None, dspy.Prediction(), dspy.Prediction(other="Jazz no"), dspy.Prediction(answer=None)]
NO_ANSWERS += [dspy.Prediction(answer=answer) for answer in ("", " \n", "...", 7, ["Jazz"], ["no"])]


def said(text):
    return dspy.Prediction(answer=text)


@pytest.mark.parametrize("metric", [exact_word, yes_no_maybe])
@pytest.mark.parametrize("prediction", NO_ANSWERS, ids=repr)
def test_no_answer_is_a_wrong_answer(metric, prediction):
    example = JAZZ if metric is exact_word else NO
    assert metric(example, prediction) == 0.0


@pytest.mark.parametrize("metric", [exact_word, yes_no_maybe])
@pytest.mark.parametrize("gold", [{}, {"answer": None}, {"answer": " "}, {"answer": 3}])
def test_an_example_without_gold_is_an_error_of_the_data(metric, gold):
    with pytest.raises(DatasetError, match="answer"):
        metric(dspy.Example(question="?", **gold), said("yes"))


@pytest.mark.parametrize(
    "reply", ["Jazz", "jazz", " JAZZ\n", "Jazz.", '"Jazz".', "'Jazz'", "`Jazz`", "“Jazz”", "Jazz!?"]
)
def test_exact_word_right(reply):
    score = exact_word(JAZZ, said(reply), trace=[])
    assert score == 1.0
    assert type(score) is float


@pytest.mark.parametrize(
    "reply",
    [
        "Craig",
        "Jazzy",
        "Jaz",
        "Ja zz",
        "Answer: Jazz",
        "Answer: Jazz or Craig",
        "Jazz, Craig, Orrin, Leigh",
        "Jazz\nCraig",
        "Jazz Jazz",
        "Jazz adores trail running.",
        "not Jazz",
        "Jazz. " * 1000,
    ],
)
def test_exact_word_wrong(reply):
    assert exact_word(JAZZ, said(reply)) == 0.0


def test_exact_word_never_pays_for_silence():
    assert exact_word(dspy.Example(answer="?"), said("")) == 0.0


def test_exact_word_reads_words_apart_by_any_space():
    assert exact_word(dspy.Example(answer="Mary Ann"), said("mary\u00a0\n ann.")) == 1.0


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("yes", "yes"),
        (" Maybe.\n", "maybe"),
        ('"No".', "no"),
        ("**Yes**", "yes"),
        ("Yes, there was a clear difference.", "yes"),
        ("No. The groups did not differ, yes or otherwise.", "no"),
        ("Yes: no patient relapsed", "yes"),
        ("Answer: no", "no"),
        ("**Answer:** Maybe", "maybe"),
        ("The answer is yes.", "yes"),
        ("The final answer is: no", "no"),
        ("Yes and no are both possible.\nAnswer: maybe.", "maybe"),
        ("Answer: yes\nLet me check again.\nAnswer: yes, surely", "yes"),
        ("Answer:\n  no", "no"),
        ("answer: yes\nanswer: no", None),
        ("Answer: yes or no", None),
        ("yes or no", None),
        ("yes/no/maybe", None),
        ("Yes, no, maybe", None),
        ("Yes. No. Maybe.", None),
        ("Yes, or maybe no", None),
        ("Yes, perhaps maybe", None),
        ("Yes.\nAnswer:", None),
        ("yes no maybe " * 1000, None),
        ("Yesterday", None),
        ("nothing", None),
        ("none", None),
        ("The data suggest yes", None),
        ("I cannot answer: the abstract is too short", None),
        ("", None),
        ("...", None),
        ("\n\n", None),
    ],
)
def test_yes_no_maybe_reads_an_anchored_label_or_nothing(reply, label):
    assert parse(reply) == label
    for gold in ("yes", "no", "maybe"):
        assert yes_no_maybe(dspy.Example(answer=gold), said(reply)) == float(label == gold)


def test_yes_no_maybe_refuses_another_gold_label():
    with pytest.raises(DatasetError, match="'unclear'"):
        yes_no_maybe(dspy.Example(answer="unclear"), said("yes"))


def test_every_class_counts_alike_however_frequent_it_is():
    gold = ["yes"] * 6 + ["no"] * 3 + ["maybe"]
    always = class_report(gold, ["yes"] * 10)
    assert (always.balanced_accuracy, always.macro_f1) == (pytest.approx(1 / 3), pytest.approx(0.75 / 3))
    mixed = class_report(gold, ["yes", "yes", "yes", "no", "no", None, "no", "no", "yes", "maybe"])
    assert mixed.recall == {"yes": 0.5, "no": pytest.approx(2 / 3), "maybe": 1.0}
    assert mixed.f1 == {"yes": pytest.approx(6 / 10), "no": pytest.approx(4 / 7), "maybe": 1.0}
    assert class_report(gold, gold).macro_f1 == 1.0


def test_a_class_that_has_no_gold_label_counts_in_no_mean():
    assert class_report(["yes", "yes"], ["yes", "maybe"]).recall == {"yes": 0.5}


@pytest.mark.parametrize(("gold", "predicted"), [([], []), (["yes"], []), (["yes"], ["yes", "no"])])
def test_labels_must_be_there_and_equally_many(gold, predicted):
    with pytest.raises(ValueError, match=r"[Ll]abel|shorter|longer"):
        class_report(gold, predicted)
