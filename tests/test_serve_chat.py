"""`sirius-dspy serve`: models and chats, with OpenAI's own client over HTTP."""

from __future__ import annotations

import dspy
import httpx
import openai
import pytest

from sirius_dspy.errors import RolloutError
from tests.serve_help import FakeBackend, serving

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def backend():
    return FakeBackend()


@pytest.fixture(scope="module")
def client(tmp_path_factory, backend):
    with serving(tmp_path_factory.mktemp("data"), backend) as client:
        yield client


def ask(client, model="tiny", messages=HELLO, **settings):
    return client.chat.completions.create(model=model, messages=messages, **settings)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny", "owner/small"]
    assert client.models.retrieve("owner/small").id == "owner/small"


def test_an_answer_has_text_and_usage(client):
    answer = ask(client)
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "You said: Hello there")
    assert choice.finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 4, 6)


def test_settings_reach_the_backend(client, backend):
    ask(client, max_completion_tokens=7, temperature=0.3, top_p=0.5, stop=["\n", "."], seed=11)
    options = backend.asked[-1][2]
    assert (options.max_tokens, options.temperature, options.top_p) == (7, 0.3, 0.5)
    assert (options.stop, options.seed) == (("\n", "."), 11)


def test_defaults_are_those_of_openai(client, backend):
    ask(client)
    options = backend.asked[-1][2]
    assert (options.temperature, options.top_p, options.stop, options.seed) == (1.0, 1.0, (), None)


def test_several_answers_have_different_seeds(client, backend):
    before = len(backend.asked)
    answer = ask(client, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    seeds = [options.seed for _, _, options in backend.asked[before:]]
    assert min(seeds) == 5
    assert len(set(seeds)) == 3
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 12)


def test_parts_of_text_and_developer_messages_are_understood(client, backend):
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    ask(client, messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert backend.asked[-1][1] == HELLO


def test_an_answer_can_be_sent_back(client):
    message = ask(client).choices[0].message
    again = ask(client, messages=[*HELLO, message.model_dump(), {"role": "user", "content": "Bye"}])
    assert again.choices[0].message.content == "You said: Bye"


def test_a_stream_has_the_same_text(client):
    chunks = list(ask(client, n=2, stream=True, stream_options={"include_usage": True}))
    for number in range(2):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == number]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == "You said: Hello there"
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["stop"]
    assert chunks[-1].usage.completion_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("text", ["", " a\n\nb ", "one", "\n"])
def test_a_stream_loses_no_space(tmp_path, text):
    with serving(tmp_path, FakeBackend(reply=lambda weights, messages: text)) as client:
        chunks = list(ask(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
    ],
)
def test_what_is_not_supported_is_refused(client, settings, field):
    with pytest.raises(openai.BadRequestError, match=f"'{field}'") as caught:
        ask(client, **settings)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field)


def test_values_that_ask_for_nothing_are_accepted(client):
    ask(client, response_format={"type": "text"}, frequency_penalty=0, logprobs=False, user="me")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": list("abcde")}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0]",
        ),
    ],
)
def test_a_wrong_field_is_named(client, settings, field):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **settings)
    assert caught.value.param.startswith(field)
    assert caught.value.type == "invalid_request_error"


def test_an_unknown_model_is_a_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-4o")
    assert caught.value.code == "model_not_found"


def test_a_prompt_that_is_too_long_is_the_caller_s_error(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "x" * 10_001}])
    assert caught.value.code == "context_length_exceeded"


def test_a_failing_model_is_a_500_that_says_why(tmp_path):
    def fail(weights, messages):
        raise RolloutError("The engine has failed.")

    with serving(tmp_path, FakeBackend(reply=fail)) as client:
        with pytest.raises(openai.InternalServerError, match="The engine has failed"):
            ask(client)
        with pytest.raises(openai.InternalServerError):
            ask(client, stream=True)


def test_an_unforeseen_error_shows_nothing(tmp_path):
    backend = FakeBackend(reply=lambda weights, messages: {}["secret"])
    with serving(tmp_path, backend) as client, pytest.raises(openai.InternalServerError) as caught:
        ask(client)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"{", b"[1]", b"[" * 100_000, b"\xff"], ids=["cut", "list", "deep", "binary"])
def test_a_body_that_is_no_object_is_a_400(client, body):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{client.base_url}chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "nothing", 404), ("GET", "chat/completions", 405)])
def test_other_addresses_have_openai_s_errors(client, method, path, status):
    answer = httpx.request(method, f"{client.base_url}{path}")
    assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})


def test_dspy_asks_it(client):
    lm = dspy.LM("openai/tiny", api_base=str(client.base_url), api_key="none", cache=False)
    assert lm("Hello") == ["You said: Hello"]
    assert lm.history[-1]["usage"]["total_tokens"] == 4
