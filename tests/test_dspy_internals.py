"""One canary for each thing of DSPy that `sirius_dspy.dspy_internals` uses beyond its documented API.

If one of these fails after an update of DSPy, correct that module; its test says what has moved.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import LMRateLimitError

from sirius_dspy import dspy_internals as internals
from sirius_dspy.testing import ScriptedLM, chat_reply

PACKAGE = Path(internals.__file__).parent


class TooManyRequestsError(Exception):
    status_code = 429
    retry_after = 2.5


def private_imports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dspy"
        for alias in node.names
    ]
    return [name for name in names if any(part.startswith("_") for part in name.split("."))]


def test_no_other_file_imports_private_names():
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "dspy_internals.py"]
    assert {path.name: found for path in others if (found := private_imports(path))} == {}


def test_the_private_attributes_of_an_lm_are_the_ones_that_we_expect():
    private = {name for name in vars(dspy.LM("openai/any")) if name.startswith("_")}
    assert private == internals.LM_INTERNALS


def test_only_lms_of_dspy_are_managed_and_only_those_without_an_engine_have_a_server():
    class ForeignLM(dspy.BaseLM):
        pass

    lms = {"server": dspy.LM("openai/any"), "engine": ScriptedLM({}), "foreign": ForeignLM("any")}
    assert {name for name, lm in lms.items() if internals.is_managed(lm)} == {"server", "engine"}
    assert {name for name, lm in lms.items() if internals.has_server(lm)} == {"server"}


def test_an_error_of_an_sdk_is_translated_and_an_unknown_one_is_not():
    assert isinstance(internals.to_lm_error(TooManyRequestsError("slow down")), LMRateLimitError)
    assert internals.to_lm_error(ValueError("not an SDK's")) is None


@pytest.mark.parametrize(("said", "seconds"), [(2.5, 2.5), ("3", 3.0), (None, None), ("soon", None), (-1, None)])
def test_the_wait_that_a_server_asks_for_is_read(said, seconds):
    error = TooManyRequestsError()
    error.retry_after = said
    assert internals.retry_after_s(error) == seconds
    assert internals.retry_after_s(ValueError("says nothing")) is None


def test_modules_under_way_are_listed_from_the_outside_in():
    class Inner(dspy.Module):
        def forward(self):
            return internals.caller_modules()

    class Outer(dspy.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self):
            return self.inner()

    program = Outer()
    assert list(program()) == [program, program.inner]
    assert list(internals.caller_modules()) == []


def test_a_usage_tracker_of_the_context_hears_of_answers():
    class Tracker:
        heard = ()

        def add_usage(self, lm, entry):
            self.heard = (lm, entry["prompt_tokens"] > 0)

    tracker = Tracker()
    assert internals.usage_tracker() is None
    with dspy.context(usage_tracker=tracker, lm=ScriptedLM(lambda prompt: chat_reply(answer="yes"))):
        assert internals.usage_tracker() is tracker
        dspy.Predict("question -> answer")(question="well?")
    assert tracker.heard == (ScriptedLM({}).model, True)


def test_an_lm_hands_its_history_entries_to_one_method():
    entries = []

    class Listening(ScriptedLM):
        def update_history(self, entry):
            entries.append(entry)

    with dspy.context(lm=Listening(lambda prompt: chat_reply(answer="yes"))):
        dspy.Predict("question -> answer")(question="well?")
    assert len(entries) == 1
    assert "well?" in str(entries[0]["messages"])
    assert {"kwargs", "response"} <= set(entries[0])


def test_a_compiled_module_hides_its_predictors():
    program = dspy.Module()
    program.part = dspy.ChainOfThought("question -> answer")
    assert not internals.is_compiled(program.part)
    internals.mark_compiled(program.part)
    assert internals.is_compiled(program.part)
    assert program.named_predictors() == []
    internals.mark_compiled(program.part, False)
    assert [name for name, _ in program.named_predictors()] == ["part.predict"]


def test_the_role_of_a_field_is_read():
    fields = dspy.Signature("question -> answer").fields
    assert {name: internals.field_role(info) for name, info in fields.items()} == {
        "question": "input",
        "answer": "output",
    }


def test_a_copy_of_a_predictor_keeps_its_stage():
    predictor = dspy.Predict("question -> answer")
    assert predictor.deepcopy().stage == predictor.stage != dspy.Predict("question -> answer").stage


def test_bootstrap_finetune_trains_on_the_runs_that_were_chosen():
    class Choosing(internals.BootstrapFinetune):
        def choose_runs(self, runs, place):
            assert place == 0
            return runs[1:]

    predictor = dspy.Predict("question -> answer")
    runs = [
        {"score": True, "trace": [(predictor, {"question": question}, dspy.Prediction(answer="yes"))]}
        for question in ("first?", "second?")
    ]
    rows, _ = Choosing()._prepare_finetune_data(trace_data=runs, lm=dspy.LM("openai/any"), pred_ind=0)
    assert len(rows) == 1
    assert "second?" in str(rows)


def test_values_are_formatted_and_parsed_for_adapters():
    fields = dspy.Signature("question -> answer: int").output_fields
    named = internals.FieldInfoWithName("answer", fields["answer"])
    assert (named.name, internals.format_field_value(named.info, 4)) == ("answer", "4")
    assert internals.parse_value(" 4 ", int) == 4
    signature = dspy.Signature("question -> answer: int")
    assert internals.apply_output_field_defaults(signature, {"answer": 4}) == {"answer": 4}


def test_the_state_of_an_lm_names_its_class():
    state = dspy.LM("openai/any").dump_state()
    assert state[internals.LM_CLASS_STATE_KEY] == "dspy.clients.lm.LM"


def test_a_custom_type_marks_where_it_stands_in_a_message():
    image = dspy.Image(url="https://example.com/cat.png")
    assert internals.CUSTOM_TYPE_START_IDENTIFIER in str(image)


def test_settings_of_the_main_thread_can_be_undone_between_tests():
    config = sys.modules["dspy.dsp.utils.settings"].main_thread_config
    dspy.configure(num_threads=3)
    assert config["num_threads"] == 3


def test_the_engine_that_dspy_would_choose_is_known():
    lms = {
        "openai-chat": dspy.LM("openai/any"),
        "anthropic": dspy.LM("anthropic/any"),
        None: dspy.LM("openai/any", engine="litellm"),
    }
    assert {provider: internals.engine_of_server(lm) for provider, lm in lms.items()} == {name: name for name in lms}
    assert internals.engine_of_server(dspy.LM("unknown-provider/any")) is None
    assert internals.engine_of_server(dspy.LM("openai/any", headers={"a": "b"})) is None
    assert internals.engine_of_server(ScriptedLM({})) is None


def test_an_engine_is_kept_with_the_lm_and_its_copies_until_the_lm_is_closed():
    class Engine:
        closed = 0

        def close(self):
            self.closed += 1

    lm, engine = dspy.LM("openai/any"), Engine()
    assert internals.kept_engine(lm, ("name",), lambda: engine) is engine
    assert internals.kept_engine(lm.copy(), ("name",), Engine) is engine
    assert internals.kept_engine(lm, ("other",), Engine) is not engine
    lm.close()
    assert engine.closed == 1
    assert internals.kept_engine(lm, ("name",), Engine) is not engine


def test_an_lm_with_another_engine_shares_its_state():
    lm = dspy.LM("openai/any", api_key="k", api_base="http://here", temperature=0.5)
    engine = ScriptedLM({}).engine
    other = internals.with_engine(lm, engine, without=("api_key", "api_base"))
    assert (other.engine, other.model, other.history is lm.history) == (engine, "openai/any", True)
    assert other.kwargs == {"temperature": 0.5, "max_tokens": None}
    assert (lm.engine, lm.kwargs["api_key"]) == ("auto", "k")


def test_an_engine_is_built_with_connections_of_our_own():
    engine = internals.build_engine(
        "openai-chat", api_key="k", url="http://here/v1", max_connections=7, looks_for_proxy=False
    )
    assert engine.resolve("openai/any").provider == "openai-chat"
    assert engine.config.transport.max_connections == 7
    assert (engine.config.base_urls, engine.config.api_keys) == (
        {"openai-chat": "http://here/v1"},
        {"openai-chat": "k"},
    )
    engine.close()


def test_an_error_of_an_engine_becomes_dspys():
    error = internals.public_error(lm15.RateLimitError("slow down", retry_after=2.0), "any", "openai-chat")
    assert isinstance(error, LMRateLimitError)
    assert (error.model, error.provider, error.retry_after) == ("any", "openai-chat", 2.0)


def test_listed_prices_are_known():
    assert internals.has_listed_price("openai-chat", "gpt-4o-mini")
    assert not internals.has_listed_price("openai-chat", "no-such-model")
