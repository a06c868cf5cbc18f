"""How answers are read and compared, with every defect of the released code that method notes list as a case."""

import re
from fractions import Fraction
from pathlib import Path

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import metrics
from metrics import choice, number, theoremqa, whole_number
from metrics.answer_line import answer_line
from metrics.yes_no_maybe import parse as parse_yes_no_maybe
from metrics.yes_no_maybe import yes_no_maybe
from sirius_dspy.errors import DatasetError


def said(text):
    return dspy.Prediction(answer=text)


# The line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("42", "42"),
        ("Answer: 42", "42"),
        ("**Answer:** 42", "42"),
        ("**Answer**: 42", "42"),
        ("### Final answer: 42", "42"),
        ("The answer is 42", "42"),
        ("Therefore, the final answer is: $42$", "42"),
        ("Answer:\n\n42", "42"),
        ("Answer: 41\nNo, wait.\nAnswer: 42", "42"),
        ("Answer: \\boxed{\\text{C}}", "C"),
        ("Answer: 9**9", "9**9"),
        ("Answer: 9$9", "9 9"),
        ("It is 41.\nIt may be 42.", None),
        ("Answer: 42\nAnswer:", None),
        ("My answer: is 42\nor so", None),
        ("Answering 42\nthings", None),
        ("", None),
        ("\n \n", None),
    ],
)
def test_the_last_line_that_states_an_answer_counts(text, line):
    assert answer_line(text) == line


# Numbers


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("1.12e4", "11200"),  # read as 1.12 by the released code
        ("1,234.5", "1234.5"),  # read as 1
        ("-3/4", "-0.75"),  # read as -3
        ("0.955 ft^3", "0.955"),  # scored wrong
        ("-0.3", "-0.3"),
        ("+5", "5"),
        ("\u22125", "-5"),
        (".5", "0.5"),
        ("12.", "12"),
        ("3e-36 C", "3e-36"),
        ("3.0 x 10^8 m/s", "3e8"),
        ("3.0 \u00d7 10\u207b\u2078 m", "3e-8"),
        ("3.0 \\times 10^{-8}", "3e-8"),
        ("10^5 J", "1e5"),
        ("-10^5", "-1e5"),
        ("\\frac{3}{4}", "0.75"),
        ("v = 3/2 = 1.5 m/s", "1.5"),
        ("66 - 18 = 48", "48"),
        ("x-component = 2 m", "2"),
        ("v_2 = 2 m/s", "2"),
        ("approximately 7.1 N", "7.1"),
        ("\u2248 7.1", "7.1"),
        ("5 %", "5"),
        ("7 legs", "7"),
        ("5. The other root is negative.", "5"),
        ("5 (by symmetry)", "5"),
    ],
)
def test_a_number_is_read_whole(line, value):
    assert number.parse(line) == Fraction(value)
    assert number.parse(line) == theoremqa.parse(f"So it is.\nAnswer: {line}", "float")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "can't",
        "4 or 5",
        "4, 5",
        "4 to 5",
        "2 x 3",
        "2^10",
        "9**9**9",
        "5 = x",
        "10 - x = 5",
        "2x = 5",
        "mv^2/2 = 5",
        "1/0",
        "5 ± 1",
        "5 is wrong",
        "inf",
        "nan",
        "1e9999",
        "1e99999999",
        "0x10",
        "1_000",
        "1,23",
        "١٢",
        "x",
        "-",
        ".",
        "e5",
        "12 apples and 3 pears",
        "__import__('os').system('true')",
        "(lambda: 5)()",
        "[5]",
        "5 < x",
        "9" * 100000,
        "1" + " " * 100000 + "x",
    ],
    ids=lambda line: repr(line)[:24],
)
def test_what_is_not_one_number_is_not_guessed(line):
    assert number.parse(line) is None
    assert theoremqa.parse(f"Answer: {line}", "float") is None
    assert whole_number.parse(f"Answer: {line}") is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_exactly(value):
    assert float(number.parse(repr(value))) == value


@given(st.integers(-(10**15), 10**15))
def test_thousands_commas_change_nothing(value):
    assert whole_number.parse(f"Answer: {value:,}") == value == whole_number.parse(str(value))


@given(st.text(max_size=60))
def test_no_text_makes_a_parser_raise(text):
    for kind in ("bool", "option", "integer", "float", "list of float"):
        theoremqa.parse(text, kind)
    choice.parse(text)
    parse_yes_no_maybe(text)


# Letters


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("Answer: C", "C"),
        ("Answer: (C)", "C"),
        ("Answer: **C**", "C"),
        ("Answer: C) 10 eV", "C"),
        ("Answer: C. 10 eV, since D is too much", "C"),
        ("answer: c", "C"),
        ("Answer: ($C$)", "C"),
        ("The correct answer is (b).", "B"),
        ("Option D", "D"),
        ("A and B are wrong.\nAnswer: D", "D"),
        ("Answer: A\nOn second thought:\nAnswer: B", "B"),
        ("Answer: can't", None),
        ("Answer: E", None),
        ("Answer: A or B", None),
        ("Answer: (A) or (B)", None),
        ("Answer: A, B", None),
        ("Answer: A/B", None),
        ("A, B, C, D", None),
        ("A photon is emitted", None),
        ("The energy is 10 eV", None),
        ("I think C\nor maybe D", None),
        ("ABCD", None),
        ("", None),
    ],
)
def test_a_letter_must_stand_alone(reply, letter):
    assert choice.parse(reply) == letter
    for gold in choice.LETTERS:
        assert choice.choice(dspy.Example(answer=gold), said(reply)) == float(gold == letter)


@pytest.mark.parametrize("gold", ["E", "AB", "2", "c"])
def test_choice_refuses_another_gold(gold):
    with pytest.raises(DatasetError, match="expected one of"):
        choice.choice(dspy.Example(answer=gold), said("A"))


# yes, no, maybe: `no` inside of words was read as an answer


@pytest.mark.parametrize(
    "text", ["The diagnosis is known.", "We do not know", "Nothing", "abnormal", "Cannot say", "noted"]
)
def test_no_inside_of_words_is_no_answer(text):
    assert parse_yes_no_maybe(text) is None
    assert yes_no_maybe(dspy.Example(answer="no"), said(text)) == 0.0


# TheoremQA


def typed(answer, kind):
    return dspy.Example(question="?", answer=answer, dspy_answer_type=kind).with_inputs("question")


@pytest.mark.parametrize(
    ("gold", "kind", "reply", "score"),
    [
        ("0.955", "float", "0.955 ft^3", 1.0),
        ("0.955", "float", "0.9168", 1.0),  # 4 % less
        ("0.955", "float", "0.9932", 1.0),  # 4 % more
        ("0.955", "float", "0.9167", 0.0),
        ("0.955", "float", "0.9933", 0.0),
        ("-100.0", "float", "-104", 1.0),
        ("-100.0", "float", "-104.01", 0.0),
        ("-100.0", "float", "100", 0.0),
        ("0.0", "float", "0.000001", 0.0),  # no tolerance around 0
        ("0.0", "float", "0", 1.0),
        ("-6e+25", "float", "-6.1 x 10^25 J", 1.0),
        ("3e-36", "float", "3e-36", 1.0),
        ("14", "integer", "14.4", 1.0),
        ("14", "integer", "13.5", 1.0),  # halves round to even, as in the source
        ("14", "integer", "14.5", 1.0),
        ("15", "integer", "14.5", 0.0),
        ("14", "integer", "15", 0.0),
        ("14", "integer", "fourteen", 0.0),
        ("true", "bool", "Yes, it does.", 1.0),
        ("true", "bool", "True", 1.0),
        ("false", "bool", "**False**", 1.0),
        ("false", "bool", "not true", 0.0),
        ("true", "bool", "not true", 0.0),
        ("true", "bool", "True or False", 0.0),
        ("true", "bool", "1", 0.0),
        ("(c)", "option", "(c)", 1.0),
        ("(c)", "option", "c", 1.0),
        ("(c)", "option", "(c) because it is", 1.0),
        ("(c)", "option", "(a) or (c)", 0.0),
        ("(c)", "option", "can't", 0.0),
        ("[0, 5]", "list of integer", "[0, 5]", 1.0),
        ("[0, 5]", "list of integer", "(5, 0)", 1.0),  # the source sorts both
        ("[0, 5]", "list of integer", "[0.2, 5.4]", 1.0),
        ("[0, 5]", "list of integer", "[0, 5, 5]", 0.0),
        ("[0, 5]", "list of integer", "0", 0.0),
        ("[0, 5]", "list of integer", "[0, five]", 0.0),
        ("[2.0, 1.32]", "list of float", "[P_r, P_a] = [2.05, 1.3]", 1.0),
        ("[2.0, 1.32]", "list of float", "[2.05, 1.3] kVA", 1.0),
        ("[2.0, 1.32]", "list of float", "[1.05, 1.3]", 0.0),
        ("[2.0, 1.32]", "list of float", "[2.0, 1.32], or [1, 2]", 0.0),
    ],
)
def test_theoremqa_compares_as_the_source_does(gold, kind, reply, score):
    assert theoremqa.theoremqa(typed(gold, kind), said(f"Some work: 14, (c), True, [0, 5].\nAnswer: {reply}")) == score


HOSTILE = [
    "__import__('os').system('touch owned')",
    "[__import__('os').getcwd()]",
    "exec('1')",
    "open('secret').read()",
    "().__class__.__bases__[0].__subclasses__()",
    "9**9**9**9",
    "[1]*10**10",
    "(" * 10_000,
    "[" * 10_000 + "1",
    "[" + "1," * 10_000 + "1]",
    "\\frac{" * 1000,
    "True" * 10_000,
    "\x00\ud800",
    " or ".join(["True", "False", "(a)", "(b)", "0", "1", "[0, 5]"]),
]


@pytest.mark.parametrize("reply", HOSTILE, ids=lambda reply: repr(reply)[:24])
@pytest.mark.parametrize(
    ("gold", "kind"),
    [("1.0", "float"), ("1", "integer"), ("true", "bool"), ("(a)", "option"), ("[0, 5]", "list of integer")],
)
def test_hostile_replies_are_text_and_score_nothing(gold, kind, reply):
    for text in (reply, f"Answer: {reply}"):
        assert theoremqa.parse(text, kind) is None
        assert theoremqa.theoremqa(typed(gold, kind), said(text)) == 0.0
        assert choice.parse(text) is None
        assert whole_number.parse(text) is None


def test_no_metric_evaluates_text():
    sources = [path.read_text(encoding="utf-8") for path in Path(metrics.__file__).parent.glob("*.py")]
    assert not [
        text for text in sources if re.search(r"\b(eval|exec|compile|literal_eval)\(", text.replace("re.compile(", ""))
    ]


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("0.955", None),
        ("0.955", "number"),
        ("x", "float"),
        ("[1, []]", "list of float"),
        ("[]", "list of float"),
        ("true", "float"),
        ("1", "bool"),
        ("NaN", "float"),
        ("(z)", "option"),
        ('"1"', "integer"),
    ],
)
def test_theoremqa_refuses_a_gold_of_another_type(gold, kind):
    with pytest.raises(DatasetError, match="Correct the example"):
        theoremqa.theoremqa(typed(gold, kind), said("1"))


@given(st.floats(-1e30, 1e30).filter(lambda value: abs(value) > 1e-30), st.floats(-0.039, 0.039))
def test_floats_within_four_per_cent_are_right(gold, error):
    example = typed(repr(gold), "float")
    assert theoremqa.theoremqa(example, said(repr(gold * (1 + error)))) == 1.0
    assert theoremqa.theoremqa(example, said(repr(gold * (1.041 + abs(error))))) == 0.0


@given(st.lists(st.integers(-99, 99), min_size=1, max_size=6))
def test_lists_compare_in_any_order(gold):
    example = typed(str(gold), "list of integer")
    assert theoremqa.theoremqa(example, said(str(gold[::-1]))) == 1.0
    assert theoremqa.theoremqa(example, said(str([*gold, 0]))) == 0.0


# All of them


@pytest.mark.parametrize(
    ("metric", "example"),
    [
        (choice.choice, dspy.Example(answer="C")),
        (whole_number.whole_number, dspy.Example(answer="7")),
        (theoremqa.theoremqa, typed("7", "integer")),
    ],
)
@pytest.mark.parametrize(
    "prediction", [None, dspy.Prediction(), *map(said, (None, "", "...", 7, ["C"], ("7",)))], ids=repr
)
def test_no_answer_is_a_wrong_answer(metric, example, prediction):
    assert metric(example, prediction, trace=[]) == 0.0


@pytest.mark.parametrize("metric", [choice.choice, whole_number.whole_number, theoremqa.theoremqa])
@pytest.mark.parametrize("gold", [{}, {"answer": None}, {"answer": " "}, {"answer": 3}])
def test_an_example_without_gold_is_an_error_of_the_data(metric, gold):
    with pytest.raises(DatasetError, match="answer"):
        metric(dspy.Example(question="?", **gold), said("C"))


def test_whole_number_refuses_another_gold():
    with pytest.raises(DatasetError, match="whole number"):
        whole_number.whole_number(dspy.Example(answer="7.5"), said("7"))
