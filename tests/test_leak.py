"""What an edit may say, and what it would teach that its agent cannot know."""

from dataclasses import replace

import pytest

from sirius_dspy.repair.leak import LeakGuard, find_sentence
from sirius_dspy.trajectory import Failure, Step


def leak(text, gold="Paris", *, inputs="Capital of France?", first="No idea.", answers=False, **labels):
    """What the guard says of an edit of an agent; `gold` is the label, or `labels` are."""
    outputs = None if first is None else {"facts": first}
    failure = Failure("AdapterParseError", "no field", "half") if first is None else None
    step = Step("analyst", 0, {"question": inputs}, outputs, "lm", failure)
    return LeakGuard().leak({"facts": text}, step, labels or {"answer": gold}, answers=answers)


# The gold answer


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("It is Paris.", "Paris"),
        ("it is PARIS", "Paris"),
        ("(paris)", "Paris"),
        ("Paris-born", "Paris"),
        ("They left New\n  York City.", "new york"),
        ("There are 12.", 12),
        ("12, I think", "12"),
        ("x=12", 12),
        ("about 3.5 litres", 3.5),
        ("4 apples", 4.0),
        ("4.0 apples", 4.0),
        ("4.00 apples, not 4.01", "4"),
        ("It is 2.50.", 2.5),
        ("It is 2.5.", "2.50"),
        ("1,200 g", 1200),
        ("1200 g", "1,200"),
        ("one of 12,13", 12),
        ("minus -5 degrees", -5),
        ("the U.S. army", "U.S."),
        ("C++ it is", "C++"),
        ("Say yes", "yes"),
        ("That is true", True),
        ("首都是巴黎。", "巴黎"),
        ("a+b (c)", "a+b (c)"),
        (" Paris ", " Paris\n"),
        ("STRASSE", "Straße"),
        ("cafe\u0301", "caf\u00e9"),
        ("O\u2019Brien did it", "O'Brien"),
        ("It is \u22125.", "-5"),
        ("It is -5.", "\u22125"),
        ("1\u202f200 km", "1200"),
        ("\uff11\uff12", 12),
        ("There are four.", 4),
        ("There are 4.", "four"),
        ("It is .5.", "0.5"),
        ("It is 0.50.", ".5"),
        ("New-York", "New York"),
        ("New York", "New-York"),
        ("It is _Paris_.", "Paris"),
        ("Par\u200bis", "Paris"),
        ("Paris, I think", "Paris."),
        ("Paris, I think", '"Paris"'),
        ("(A)", "A"),
        ("Option A is right.", "A"),
        ("A. Because", "A"),
        ("So it is I.", "I"),
    ],
)
def test_the_gold_answer_ahead_of_its_agent_is_a_leak(text, gold):
    assert leak(text, gold).startswith("newly carries the gold answer")


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("There are 120.", 12),
        ("It weighs 3.12 kg.", 12),
        ("It weighs 12.5 kg.", 12),
        ("It weighs 1,200 g.", 200),
        ("item A12", 12),
        ("It weighs 4.05 kg.", 4.0),
        ("It weighs 4.5 kg.", 4),
        ("It weighs 2.51 kg.", 2.5),
        ("Parisian food", "Paris"),
        ("Comparison", "Paris"),
        ("New York is old; the City sleeps.", "New York City"),
        ("nothing here", ""),
        ("A man walks. A dog barks.", "A"),
        ("There is a plan.", "A"),
        ("I think so.", "I"),
        ("It's a don't know.", "t"),
        ("One of them. A stop.", "."),
        ("the item_12", 12),
        ("one of them", 1),
        ("None of them", None),
        ("It is Lyon.", "Paris"),
    ],
)
def test_what_only_looks_like_it_is_none(text, gold):
    assert leak(text, gold) == ""


def test_what_stands_in_the_agents_inputs_may_be_copied():
    assert leak("It says Paris.", inputs="Text: Paris is the capital.") == ""
    assert leak("It says Paris.", inputs="Text: paris is the capital.") == ""
    assert leak("It says Paris.", inputs="Text: Parisians live there.") != ""


def test_what_the_agent_wrote_by_itself_is_no_leak():
    assert leak("Paris, on the Seine.", first="Paris or Lyon.") == ""
    assert leak("Paris, on the Seine.", first="Lyon.") != ""


def test_an_agent_whose_first_reply_did_not_parse_is_guarded_too():
    assert leak("It is Paris.", first=None) != ""
    assert leak("It is on the Seine.", first=None) == ""


def test_the_agent_that_answers_may_say_the_answer_but_not_talk_of_feedback():
    assert leak("It is Paris.", answers=True) == ""
    assert leak("Thanks to the feedback, Paris.", answers=True) != ""


def test_every_label_counts_and_so_do_lists_of_answers():
    assert leak("On the Seine.", answer="Paris", river=" Seine ") == "newly carries the gold answer 'Seine'"
    assert "'City of Light'" in leak("The city of light.", answers_known=["Paris", "City of Light"])
    assert "'Seine'" in leak("On the Seine.", meta={"rivers": [{"name": "Seine"}]})
    assert leak("On the Loire.", answer="Paris", meta={"Loire": None}, empty=[]) == ""


def test_nested_values_are_searched_on_both_sides():
    step = Step("analyst", 0, {"docs": [{"text": "Lyon and Nice"}]}, {"facts": []}, "lm")
    guard = LeakGuard()
    found = [
        guard.leak({"facts": [{"claims": ("fine", ["see Paris"])}]}, step, {"answer": "Paris"}, answers=False),
        guard.leak({"facts": [{"claims": ("fine", ["see Nice"])}]}, step, {"answer": "Nice"}, answers=False),
        guard.leak({"facts": [{"Paris": 1}]}, step, {"answer": "Paris"}, answers=False),  # scores of answers
        guard.leak({"facts": [{"Paris": 1}]}, step, {"answer": "facts"}, answers=False),  # the name of a field
        guard.leak({"facts": [12, 3.5]}, step, {"answer": 12}, answers=False),
    ]
    assert [bool(text) for text in found] == [True, False, True, False, True]


# Talk of a correction


@pytest.mark.parametrize(
    "text",
    [
        "Following the feedback, I looked again.",
        "As suggested, the Seine.",
        "My previous answer was vague.",
        "The EARLIER ANSWER stands.",
        "I apologise for that.",
        "I apologize.",
        "Here is the revised version.",
        "That was a mistake.",
        "The critique is right.",
        "Upon reconsideration it is on the Seine.",
    ],
)
def test_talk_of_a_correction_that_never_was_is_refused(text):
    assert leak(text).startswith("speaks of a correction")


@pytest.mark.parametrize(
    "text",
    ["An unmistakable river.", "The answer is on the Seine.", "The first river.", "It feeds back into the sea."],
)
def test_plain_speech_is_not(text):
    assert leak(text) == ""


def test_talk_of_feedback_is_allowed_where_the_inputs_or_the_first_output_talk_of_it():
    assert leak("The feedback loop is stable.", inputs="Is this Feedback loop stable?") == ""
    assert leak("The feedback loop is stable.", first="A feedback loop.") == ""
    assert leak("The feedback loop and the mistake.", inputs="Is this feedback loop stable?") != ""


def test_other_traces_can_be_named():
    step = Step("analyst", 0, {"question": "?"}, {"facts": "?"}, "lm")
    guard = LeakGuard(r"\bhint\w*")
    assert "'Hinted'" in guard.leak({"facts": "Hinted at."}, step, {}, answers=False)
    assert guard.leak({"facts": "A mistake."}, step, {}, answers=False) == ""


def test_an_agent_whose_work_the_answer_is_may_state_it():
    guard = LeakGuard(answering=["calculator"])
    step = Step("calculator", 0, {"question": "2 + 3 ="}, {"working": "2 + 3 = 6"}, "lm")
    other = replace(step, predictor="expert")
    assert guard.leak({"working": "2 + 3 = 5"}, step, {"answer": "5"}, answers=False) == ""
    assert "gold answer '5'" in guard.leak({"working": "2 + 3 = 5"}, other, {"answer": "5"}, answers=False)
    assert "correction" in guard.leak({"working": "Corrected: 5"}, step, {"answer": "5"}, answers=False)


def test_the_sentence_that_holds_the_answer_is_a_question_only_if_no_other_does():
    assert find_sentence({"text": "Is it Lima or Rome? Ann is in Lima. Lima is hot."}, "Lima") == "Ann is in Lima."
    assert find_sentence({"text": "Is it Lima or Rome? It is hot."}, "Lima") == "Is it Lima or Rome?"
