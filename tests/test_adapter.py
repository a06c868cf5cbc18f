"""PlainAdapter: short prompts, lenient parsing, and rows that equal what inference sends."""

from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from sirius_dspy.adapter import PlainAdapter

ONE = dspy.Signature("context, question -> answer", "Answer with a name.")
TWO = dspy.Signature("question -> reasoning, answer: int", "Think.")


def test_prompt_is_instructions_and_values_only() -> None:
    messages = PlainAdapter().format(ONE, [], {"context": "Ann likes tea.", "question": "Who likes tea?"})
    assert messages == [
        {"role": "system", "content": "Answer with a name."},
        {"role": "user", "content": "context: Ann likes tea.\nquestion: Who likes tea?"},
    ]


def test_several_outputs_are_named_in_the_last_request_only() -> None:
    demos = [{"question": "1+1?", "reasoning": "Count.", "answer": 2}]
    messages = PlainAdapter().format(TWO, demos, {"question": "2+2?"})
    assert messages[2]["content"] == "reasoning: Count.\nanswer: 2"
    assert "Reply with the lines 'reasoning:', 'answer:'." in messages[-1]["content"]
    assert "Reply with" not in messages[1]["content"]


@pytest.mark.parametrize(
    ("signature", "inputs", "outputs"),
    [
        (ONE, {"context": "x", "question": "y"}, {"answer": "Ann"}),
        (TWO, {"question": "2+2?"}, {"reasoning": "Two and\ntwo.", "answer": 4}),
        (dspy.Signature("text -> names: list[str]"), {"text": "t"}, {"names": ["a", "b"]}),
        (dspy.Signature("text -> ok: bool"), {"text": "t"}, {"ok": False}),
    ],
)
def test_training_row_is_the_inference_prompt_and_parses_back(
    signature: type[dspy.Signature], inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    adapter = PlainAdapter()
    messages = adapter.format_finetune_data(signature, [], inputs, outputs)["messages"]
    assert messages[:-1] == adapter.format(signature, [], inputs)
    assert adapter.parse(signature, messages[-1]["content"]) == outputs


@pytest.mark.parametrize("header", ["answer:", "Answer:", "**Answer:**", "**Answer**:", "  ANSWER : "])
def test_headers_of_all_looks_are_read(header: str) -> None:
    assert PlainAdapter().parse(TWO, f"reasoning: easy\n{header} 4") == {"reasoning": "easy", "answer": 4}


def test_first_mention_counts_and_order_does_not() -> None:
    assert PlainAdapter().parse(TWO, "answer: 4\nreasoning: easy\nanswer: 5") == {"reasoning": "easy", "answer": 4}


def test_reply_without_headers_is_the_last_field() -> None:
    signature = dspy.Signature("question -> reasoning: str | None, answer: str")
    with pytest.raises(AdapterParseError):
        PlainAdapter().parse(TWO, "4")  # no reasoning, which has no default
    assert PlainAdapter().parse(signature, "Ann")["answer"] == "Ann"


def test_value_of_the_wrong_type_is_a_parse_error_with_the_reply() -> None:
    with pytest.raises(AdapterParseError) as error:
        PlainAdapter().parse(TWO, "reasoning: hm\nanswer: four")
    assert error.value.lm_response == "reasoning: hm\nanswer: four"


def test_history_and_dspy_data_format_are_supported() -> None:
    from dspy.clients.utils_finetune import infer_data_format

    signature = dspy.Signature("history: dspy.History, question -> answer")
    history = dspy.History(messages=[{"question": "1+1?", "answer": "2"}])
    messages = PlainAdapter().format(signature, [], {"history": history, "question": "2+2?"})
    assert [message["content"] for message in messages[1:]] == ["question: 1+1?", "2", "question: 2+2?"]
    assert infer_data_format(PlainAdapter()) == "chat"
