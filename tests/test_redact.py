"""What is a credential, what only looks like one, and where both are taken out."""

import base64
import html
import json
from urllib.parse import quote

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sirius_dspy.credentials import in_address, in_environment, in_settings, is_secret_name
from sirius_dspy.errors import ModelNotFoundError, SiriuSError, TrainingError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.redact import (
    hide,
    hide_keys,
    redact,
    redact_error,
    redact_errors,
    remember_address,
    remember_secrets,
    without_secrets,
)
from sirius_dspy.running.record import record
from sirius_dspy.testing import ScriptedLM, ToyLM, chat_reply
from sirius_dspy.trajectory import Attempt, Repair, Trajectory

ORDINARY = [
    "skip_connection_layers",
    "skeletal-muscle-specific protein",
    "a skateboarding-championship",
    "gsk3beta-inhibitor-treatment",
    "pk_users_orders_and_customers",
    "rk-means-clustering-algorithm",
    "hf_transformers_pipeline_name",
    "sk_learn_preprocessing_pipeline_2024",
    "pk_550e8400-e29b-41d4-a716-446655440000",
    "550e8400-e29b-41d4-a716-446655440000",
    "pk_d41d8cd98f00b204e9800998ecf8427e",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "https://example.org/sk/hf_models/pk_list_of_all_pages?page=12",
    "models/hf_smollm2_135m_instruct_q8.gguf",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    "The bearer authentication-of-requests scheme",
    "a Bearer of good-news-from-the-capital",
    "AKIAN and ASIAN are words",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_texts_stay_as_they_are(text):
    assert (redact(text), hide(text), hide_keys(text)) == (text, text, text)


@pytest.mark.parametrize(
    "key",
    [
        "sk-" + "Q7z" * 12,
        "sk-proj-Zq81LmShapedLikeAKey0042xyz",
        "sk-0123456789abcdef0123456789abcdef",
        "hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_what_has_the_shape_of_a_key_is_hidden_from_readers(key):
    assert redact(f"refused: {key}, sorry") == "refused: [redacted], sorry"
    assert hide_keys({"text": [f"refused: {key}"]}) == {"text": ["refused: [redacted]"]}
    assert redact("Authorization: Bearer abc123def456ghi789") == "Authorization: Bearer [redacted]"


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("api_key", True),
        ("apiKey", True),
        ("Ocp-Apim-Subscription-Key", True),
        ("Proxy-Authorization", True),
        ("Cookie", True),
        ("vertex_credentials", True),
        ("aws_secret_access_key", True),
        ("aws_access_key_id", True),
        ("aws_session_token", True),
        ("azure_ad_token", True),
        ("PGPASSWORD", True),
        ("OPENAI_API_KEY", True),
        ("max_tokens", False),
        ("eos_token", False),
        ("tokenizer", False),
        ("author", False),
        ("token_uri", False),
        ("aws_region_name", False),
        ("Content-Type", False),
        ("temperature", False),
    ],
)
def test_names_of_settings(name, is_secret):
    assert is_secret_name(name) is is_secret


def texts_of(found):
    return {item.text for item in found}


def test_of_unknown_settings_every_value_counts_but_words_and_numbers():
    settings = {
        "temperature": 0.7,
        "api_version": "2024-05-01-preview",
        "stop": ["</answer-1234>"],
        "aws_region_name": "eu-west-1",
        "extra_body": {"deep": [{"ticket": "Zx81-unknown"}], "mode": "strict-9-mode", "project": "sentiment"},
        "extra_headers": {"X-Whatever": "some-header-words", "Accept": "application/json"},
        "api_base": "https://me:pa%40ss-word-1@host/v1?api-version=1&key=query-key-77",
        "fallbacks": [{"model": "openai/gpt-4o-mini", "api_key": "fallback-key-5"}],
    }
    expected = {"Zx81-unknown", "some-header-words", "pa%40ss-word-1", "pa@ss-word-1", "query-key-77", "fallback-key-5"}
    basic = base64.b64encode(b"me:pa@ss-word-1").decode()
    assert texts_of(in_settings(settings)) == expected | {basic}


def test_parts_of_credentials_count_alone():
    account = {"private_key": f"-----BEGIN PRIVATE KEY-----\n{'Ab3' * 20}\n", "token_uri": "https://host/token"}
    basic = base64.b64encode(b"me:password-123").decode()
    headers = {"Cookie": "theme=dark; session=cookie-123", "Authorization": f"Basic {basic}", "X-A": "Bearer bearer-12"}
    found = texts_of(in_settings({"headers": headers, "vertex_credentials": json.dumps(account)}))
    assert found >= {"cookie-123", "password-123", basic, "bearer-12", account["private_key"], "Ab3" * 20}
    assert "https://host/token" not in found


def test_the_environment_has_credentials_under_names_that_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_API_KEY", "env-key-123")
    monkeypatch.setenv("SOME_SERVICE", "https://me:url-password-1@host")
    monkeypatch.setenv("SOME_PATH", "nothing-to-hide-1")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent-12345")
    monkeypatch.setenv("GOOGLE_CREDENTIALS", str(tmp_path))  # a path is no secret
    monkeypatch.setenv("AUTH_METHOD", "password")
    found = texts_of(in_environment())
    assert found >= {"env-key-123", "url-password-1"}
    assert found.isdisjoint({"nothing-to-hide-1", "/tmp/agent-12345", str(tmp_path), "password"})
    assert redact("401: env-key-123") == "401: [redacted]"


def test_what_is_no_address_has_none():
    assert texts_of(in_address("http://[broken")) == set()
    assert texts_of(in_address("https://host/path?page=12345678")) == set()


SECRETS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=6, max_size=20).map(
    lambda text: f"Zq7{text}9"
)


@given(SECRETS, st.text(max_size=20), st.text(max_size=20))
def test_a_known_value_is_gone_from_every_form_of_a_text(secret, before, after):
    lm = dspy.LM("openai/x", api_key=secret)
    remember_secrets(lm)
    text = f"{before}{secret}{after}"
    forms = [text, json.dumps({"error": text}), json.dumps({"error": text}, ensure_ascii=False), repr([text])]
    forms += [json.dumps(json.dumps({"error": text})), html.escape(text), f"?k={quote(secret, safe='')}&"]
    forms += [base64.b64encode(secret.encode()).decode()]
    written = (secret, quote(secret, safe=""), html.escape(secret), json.dumps(secret)[1:-1])
    for form in forms:
        for clean in (redact(form), hide(form), hide([{"deep": form}])[0]["deep"]):
            assert not any(value in clean.replace("[redacted]", "\0") for value in written), form


def test_data_without_a_credential_is_the_very_same_object():
    remember_secrets(dspy.LM("openai/x", api_key="same-object-1"))
    record_ = {"a": [1, {"b": "text of a run"}], "c": ("x", None)}
    assert hide(record_) is record_
    hidden = hide({"a": ["is same-object-1"], "b": record_})
    assert hidden == {"a": ["is [redacted]"], "b": record_}
    assert hidden["b"] is record_


def test_a_password_that_is_a_word_is_hidden_in_messages_but_not_in_data():
    remember_secrets(dspy.LM("openai/x", api_key="swordfish"))
    assert redact("401: swordfish is no key") == "401: [redacted] is no key"
    assert hide("The swordfish is a fish.") == "The swordfish is a fish."


def test_short_values_are_not_looked_for_but_are_not_written_as_settings_either():
    settings = {"api_key": "abc", "extra_headers": {"X": "y"}, "deep": [{"token": "t", "top_p": 1.0}], "seed": 3}
    remember_secrets(dspy.LM("openai/x", api_key="abc"))
    assert redact("abc is the beginning") == "abc is the beginning"
    assert without_secrets(settings) == {"deep": [{"top_p": 1.0}], "seed": 3}


def test_arguments_that_change_later_and_those_of_a_call_are_noticed():
    lm = dspy.LM("openai/x", api_key="first-key-1")
    remember_secrets(lm)
    lm.kwargs["api_key"] = "second-key-2"
    remember_secrets(lm, {"temperature": 1.0, "extra_headers": {"X-Key": "third-key-3"}})
    assert redact("first-key-1 second-key-2 third-key-3") == "[redacted] [redacted] [redacted]"


def test_credentials_of_clients_are_found_and_ids_of_models_are_none():
    class Client:
        def __init__(self):
            self.api_key, self.name, self.key = "client-key-1", "client-name-1", "plain-label-1"

    lm = ToyLM("toy/model-x1-with-id")
    lm.client = Client()
    lm.kwargs["router"] = "model-x1-with-id"
    remember_secrets(lm)
    text = "client-key-1 client-name-1 plain-label-1 model-x1-with-id"
    assert redact(text) == "[redacted] client-name-1 plain-label-1 model-x1-with-id"


def test_an_exception_is_cleaned_with_all_that_caused_it():
    remember_secrets(dspy.LM("openai/x", api_key="chained-key-1"))

    class ClientError(Exception):
        def __init__(self, message):
            super().__init__(message)
            self.message, self.body = message, {"error": message}

    @redact_errors()
    def ask():
        try:
            raise ClientError("bad chained-key-1")
        except ClientError as error:
            error.add_note("was chained-key-1")
            raise RuntimeError("wrapped chained-key-1") from error

    with pytest.raises(RuntimeError) as caught:
        ask()
    cause = caught.value.__cause__
    assert str(caught.value) == "wrapped [redacted]"
    assert (str(cause), cause.message, cause.body) == ("bad [redacted]",) * 2 + ({"error": "bad [redacted]"},)
    assert cause.__notes__ == ["was [redacted]"]


def test_an_lm_in_the_traceback_gives_its_credentials_away():
    class Refusing:
        def __init__(self):
            self.model, self.kwargs = "x", {"api_key": "unseen-key-1"}

        def ask(self):
            raise RuntimeError(f"the key {self.kwargs['api_key']} is refused")

    with pytest.raises(RuntimeError) as caught:
        Refusing().ask()
    assert str(redact_error(caught.value)) == "the key [redacted] is refused"


@pytest.mark.parametrize("kind", [SiriuSError, ModelNotFoundError])
def test_no_error_of_ours_shows_what_its_cause_quotes(kind):
    remember_address("https://me:typed-error-1@host")
    assert str(kind("the server said typed-error-1")) == "the server said [redacted]"
    assert str(TrainingError("typed-error-1", agent="a")) == "[redacted]"


def test_a_run_that_holds_a_credential_is_recorded_and_stored_without_it(tmp_path):
    lm = ScriptedLM(lambda prompt: chat_reply(answer="I know stored-key-1"))
    lm.kwargs["api_key"] = "stored-key-1"
    program = dspy.Predict("question -> answer")
    program.lm = lm
    with dspy.context(adapter=dspy.ChatAdapter()):
        [step] = record(program, {"question": "Is it stored-key-1?"}).steps
    assert (step.inputs, step.outputs) == ({"question": "Is it [redacted]?"}, {"answer": "I know [redacted]"})
    example = dspy.Example(question="Is it stored-key-1?").with_inputs("question")
    with ExperienceLibrary(tmp_path / "library.db") as library:
        failed = Trajectory("e", (step,), {"answer": "stored-key-1"}, 0.0)
        again = Trajectory("e", (step,), "stored-key-1", 1.0, origin="repair", parent=library.add(failed), edited=0)
        attempt = Attempt(0, "self", "repaired", feedback="say stored-key-1", trajectory=again.id)
        library.add_repair(Repair(again.parent, (attempt,)), [again])
        library.add_all([], [example])
        assert library.verify() == []
        [kept] = library.repairs()
        assert kept.attempts[0].feedback == "say [redacted]"
        assert library.get(kept.attempts[0].trajectory).prediction == "[redacted]"
    assert [path for path in tmp_path.iterdir() if b"stored-key-1" in path.read_bytes()] == []
