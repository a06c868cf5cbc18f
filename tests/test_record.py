"""Recording and replay of every shape of program that DSPy allows."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy.errors import ReplayDivergedError, UnrecordableCallError
from sirius_dspy.running.record import arecord, record
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.running.replay import areplay, replay
from sirius_dspy.testing import Prompt, ScriptedLM, chat_reply
from sirius_dspy.trajectory import Edit, Trajectory, to_plain

ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)


def answer(prompt: Prompt) -> str:
    """One deterministic world for all programs of this file."""
    history = prompt.field("history")
    if prompt.asks_for("bid"):
        return chat_reply(reasoning="r", bid=f"b({history})")
    if prompt.asks_for("offer"):
        return chat_reply(offer=f"o({history})" + (" OK" if prompt.field("hint_") else ""))
    if prompt.asks_for("verdict"):
        return chat_reply(verdict=f"V:{history}")
    if prompt.asks_for("say"):
        return chat_reply(say=f"turn{history.count(',')}")
    if prompt.asks_for("next_thought"):
        done = "observation" in prompt.user
        tool, args = ("finish", "{}") if done else ("lookup", '{"q": "x"}')
        return chat_reply(next_thought="t", next_tool_name=tool, next_tool_args=args)
    if prompt.asks_for("advice"):
        return chat_reply(discussion="d", advice='{"r.module": "be OK"}')
    if prompt.asks_for("answer"):
        return chat_reply(reasoning="r", answer="A:" + ("77" if "77" in prompt.user else "none"))
    if prompt.asks_for("total"):
        return chat_reply(total=sum(int(number) for number in re.findall(r"\d+", prompt.field("numbers"))))
    return "no field header at all"


@pytest.fixture
def lm() -> ScriptedLM:
    lm = ScriptedLM(answer)
    dspy.configure(lm=lm, adapter=ADAPTER)
    return lm


def scored(recording: Recording, reward: float = 1.0) -> Trajectory:
    """A recording as it would come back from disk."""
    trajectory = Trajectory("key", recording.steps, to_plain(recording.prediction), reward, failure=recording.failure)
    return Trajectory.from_dict(trajectory.to_dict())


def contents(recording: Recording) -> list:
    return [step.content for step in recording.steps]


def sources(recording: Recording) -> list[str]:
    return [step.source for step in recording.steps]


class Negotiation(dspy.Module):
    def __init__(self):
        super().__init__()
        self.buyer = dspy.ChainOfThought("history -> bid")
        self.seller = dspy.Predict("history -> offer")
        self.judge = dspy.Predict("history -> verdict")

    def forward(self, start):
        history = start
        for _ in range(3):
            history = self.seller(history=self.buyer(history=history).bid).offer
        return self.judge(history=history)

    async def aforward(self, start):
        history = start
        for _ in range(3):
            bid = (await self.buyer.acall(history=history)).bid
            history = (await self.seller.acall(history=bid)).offer
        return await self.judge.acall(history=history)


BID = {"reasoning": "better", "bid": "X"}


def test_a_loop_is_recorded_call_by_call(lm):
    recording = record(Negotiation(), {"start": "S"})
    assert recording.prediction.verdict == "V:o(b(o(b(o(b(S))))))"
    assert [(step.predictor, step.occurrence) for step in recording.steps] == [
        ("buyer.predict", 0),
        ("seller", 0),
        ("buyer.predict", 1),
        ("seller", 1),
        ("buyer.predict", 2),
        ("seller", 2),
        ("judge", 0),
    ]
    first = recording.steps[0]
    assert first.inputs == {"history": "S"}
    assert first.outputs == {"reasoning": "r", "bid": "b(S)"}
    assert first.lm == "scripted/lm"
    assert first.usage.calls == 1
    assert first.usage.prompt_tokens > first.usage.completion_tokens > 0


def test_an_edit_replays_what_is_before_it_and_reruns_what_depends_on_it(lm):
    program = Negotiation()
    recorded = scored(record(program, {"start": "S"}))
    before = lm.calls
    again = replay(program, {"start": "S"}, recorded, Edit(2, BID))
    assert again.prediction.verdict == "V:o(b(o(X)))"
    assert sources(again) == ["recorded", "recorded", "edited", "live", "live", "live", "live"]
    assert lm.calls - before == 4
    assert again.edited == 2
    assert again.trace[2][2].bid == "X"


def test_taught_steps_of_a_repair_are_the_edited_one_and_later_ones(lm):
    program = Negotiation()
    again = replay(program, {"start": "S"}, scored(record(program, {"start": "S"})), Edit(2, BID))
    trajectory = Trajectory("key", again.steps, None, 1.0, edited=again.edited)
    assert [step.predictor for step in trajectory.taught_steps] == [
        "buyer.predict",
        "seller",
        "buyer.predict",
        "seller",
        "judge",
    ]


class Panel(dspy.Module):
    """Two predictors with the same signature beside each other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = dspy.Predict("history -> offer"), dspy.Predict("history -> offer")
        self.judge = dspy.Predict("history -> verdict")

    def forward(self, start):
        return self.judge(history=self.first(history=start).offer + self.second(history=start).offer)


def test_an_agent_beside_the_edited_one_keeps_its_answer(lm):
    program = Panel()
    recorded = scored(record(program, {"start": "S"}))
    assert [step.predictor for step in recorded.steps] == ["first", "second", "judge"]
    again = replay(program, {"start": "S"}, recorded, Edit(0, {"offer": "X"}))
    assert again.prediction.verdict == "V:Xo(S)"
    assert sources(again) == ["edited", "recorded", "live"]


def test_a_branch_that_the_edit_opens_is_taken(lm):
    class Branch(dspy.Module):
        def __init__(self):
            super().__init__()
            self.router = dspy.Predict("history -> offer")
            self.left, self.right = dspy.Predict("history -> verdict"), dspy.Predict("history -> verdict")

        def forward(self, start):
            route = self.router(history=start).offer
            return self.left(history=route) if "left" in route else self.right(history=route)

    program = Branch()
    recorded = scored(record(program, {"start": "S"}))
    again = replay(program, {"start": "S"}, recorded, Edit(0, {"offer": "left"}))
    assert [step.predictor for step in recorded.steps] == ["router", "right"]
    assert [step.predictor for step in again.steps] == ["router", "left"]


def test_inputs_are_recorded_as_they_were_not_as_they_became(lm):
    class Dialogue(dspy.Module):
        def __init__(self):
            super().__init__()
            self.agent = dspy.Predict("history: list[str] -> say")

        def forward(self, start):
            history = [start]
            for _ in range(3):
                history.append(self.agent(history=history).say)  # one list object, changed in place
            return dspy.Prediction(history=history)

    program = Dialogue()
    recording = record(program, {"start": "S"})
    assert [len(step.inputs["history"]) for step in recording.steps] == [1, 2, 3]
    again = replay(program, {"start": "S"}, scored(recording), Edit(2, {"say": "X"}))
    assert again.prediction.history == ["S", "turn0", "turn1", "X"]


def test_outputs_come_back_from_disk_with_their_types(lm):
    class Sum(dspy.Module):
        def __init__(self):
            super().__init__()
            self.adder = dspy.Predict("numbers: list[int] -> total: int")

        def forward(self, numbers):
            total = self.adder(numbers=numbers).total
            return self.adder(numbers=[total + 1])  # fails unless the total is a number

    program = Sum()
    recorded = scored(record(program, {"numbers": [1, 2]}))
    again = replay(program, {"numbers": [1, 2]}, recorded, Edit(1, {"total": 9}))
    assert again.prediction.total == 9
    assert again.edited == 1


def test_react_executes_a_replaced_tool_call(lm):
    program = dspy.ReAct("question -> answer", tools=[dspy.Tool(lambda q: "seen " + q, name="lookup")])
    recorded = scored(record(program, {"question": "q?"}))
    step = {"next_thought": "n", "next_tool_name": "lookup", "next_tool_args": {"q": "77"}}
    again = replay(program, {"question": "q?"}, recorded, Edit(0, step))
    assert again.prediction.answer == "A:77"
    assert again.prediction.trajectory["observation_0"] == "seen 77"
    assert [step.predictor for step in again.steps] == ["react", "react", "extract.predict"]


def test_refine_is_recorded_through_its_copies(lm):
    class Refining(dspy.Module):
        def __init__(self):
            super().__init__()
            self.r = dspy.Refine(
                dspy.Predict("history -> offer"),
                N=2,
                reward_fn=lambda args, prediction: 1.0 if "OK" in prediction.offer else 0.0,
                threshold=1.0,
            )
            self.judge = dspy.Predict("history -> verdict")

        def forward(self, start):
            return self.judge(history=self.r(history=start).offer)

    program = Refining()
    program.set_lm(lm)
    recording = record(program, {"start": "R"})
    assert [step.predictor for step in recording.steps] == ["r.module", "<Predict>", "r.module", "judge"]
    assert "hint_" in recording.steps[2].inputs


class Fan(dspy.Module):
    def __init__(self):
        super().__init__()
        self.worker = dspy.Predict("history -> offer")
        self.judge = dspy.Predict("history -> verdict")

    def forward(self, start):
        calls = [(self.worker, {"history": f"{start}{i}"}) for i in range(4)]
        offers = dspy.Parallel(num_threads=4, disable_progress_bar=True)(calls)
        return self.judge(history="|".join(offer.offer for offer in offers))

    async def aforward(self, start):
        offers = await asyncio.gather(*(self.worker.acall(history=f"{start}{i}") for i in range(4)))
        return await self.judge.acall(history="|".join(offer.offer for offer in offers))


def test_parallel_calls_are_edited_by_what_they_were_asked_whatever_their_order(lm):
    program = Fan()
    recorded = scored(record(program, {"start": "P"}))
    position = next(i for i, step in enumerate(recorded.steps) if step.inputs["history"] == "P2")
    again = replay(program, {"start": "P"}, recorded, Edit(position, {"offer": "EDIT"}))
    assert again.prediction.verdict == "V:o(P0)|o(P1)|EDIT|o(P3)"
    assert sorted(sources(again)) == ["edited", "live", "recorded", "recorded", "recorded"]


def test_async_programs_are_recorded_and_replayed(lm):
    async def both():
        recorded = scored(await arecord(Fan(), {"start": "G"}))
        program = Fan()
        return recorded, await areplay(program, {"start": "G"}, recorded, Edit(0, {"offer": "EDIT"}))

    recorded, again = asyncio.run(both())
    assert recorded.prediction == {"verdict": "V:o(G0)|o(G1)|o(G2)|o(G3)"}
    assert again.prediction.verdict.count("EDIT") == 1


def test_a_program_that_is_only_async_runs_in_a_loop_of_its_own(lm):
    class OnlyAsync(dspy.Module):
        def __init__(self):
            super().__init__()
            self.judge = dspy.Predict("history -> verdict")

        async def aforward(self, start):
            return await self.judge.acall(history=start)

    assert record(OnlyAsync(), {"start": "S"}).prediction.verdict == "V:S"


def test_several_completions_are_replayed_all(lm):
    class Several(dspy.Module):
        def __init__(self):
            super().__init__()
            self.judge = dspy.Predict("history -> verdict", n=3, temperature=1.0)
            self.last = dspy.Predict("history -> offer")

        def forward(self, start):
            verdicts = self.judge(history=start).completions.verdict
            return self.last(history=f"{len(verdicts)} verdicts")

    program = Several()
    recorded = scored(record(program, {"start": "S"}))
    again = replay(program, {"start": "S"}, recorded, Edit(1, recorded.steps[1].outputs))
    assert again.prediction.offer == "o(3 verdicts)"


def test_an_edit_stands_for_all_completions_that_a_predictor_asked_for(lm):
    class Voting(dspy.Module):
        def __init__(self):
            super().__init__()
            self.judge = dspy.Predict("history -> verdict", n=3, temperature=1.0)

        def forward(self, start):
            found = self.judge(history=start)
            assert len(found.completions.verdict) == 3
            return dspy.majority(found)

    program = Voting()
    recorded = scored(record(program, {"start": "S"}))
    before = lm.calls
    same = replay(program, {"start": "S"}, recorded, Edit(0, recorded.steps[0].outputs))
    assert contents(same) == [step.content for step in recorded.steps]
    edited = replay(program, {"start": "S"}, recorded, Edit(0, {"verdict": "better"}))
    assert edited.prediction.verdict == "better"
    assert lm.calls == before


class Fragile(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a = dspy.Predict("history -> nothing")
        self.b = dspy.Predict("history -> offer")

    def forward(self, start):
        try:
            self.a(history=start)
        except AdapterParseError:
            start = "rescued"
        return self.b(history=start)


def test_a_call_that_does_not_parse_is_recorded_fails_again_and_can_be_repaired(lm):
    program = Fragile()
    recorded = scored(record(program, {"start": "S"}))
    assert recorded.steps[0].outputs is None
    assert recorded.steps[0].failure.completion == "no field header at all"
    before = lm.calls
    same = replay(program, {"start": "S"}, recorded, Edit(1, {"offer": "Y"}))
    assert same.prediction.offer == "Y"
    assert lm.calls == before
    repaired = replay(program, {"start": "S"}, recorded, Edit(0, {"nothing": "parsed"}))
    assert repaired.prediction.offer == "o(S)"


def test_a_program_that_raises_is_data_with_the_steps_so_far(lm):
    class Raising(Panel):
        def forward(self, start):
            self.first(history=start)
            raise RuntimeError("half way, key sk-abcdefghijklmnopqrstuvwx")

    recording = record(Raising(), {"start": "S"})
    assert recording.prediction is None
    assert recording.failure.kind == "RuntimeError"
    assert "sk-abc" not in recording.failure.message
    assert [step.predictor for step in recording.steps] == ["first"]


def test_settings_history_and_predictors_of_the_caller_stay_as_they_were(lm):
    program = Negotiation()
    state = program.dump_state()
    trace: list = []
    with dspy.context(trace=trace):
        record(program, {"start": "S"})
        assert dspy.settings.adapter is ADAPTER
    assert not trace
    assert not lm.history
    assert not program.history
    assert program.dump_state() == state
    assert "forward" not in vars(program)


def test_the_callers_usage_tracker_still_counts(lm):
    with dspy.track_usage() as tracker:
        record(Panel(), {"start": "S"})
    assert len(tracker.usage_data["scripted/lm"]) == 3
    with dspy.context(track_usage=True):
        recording = record(Panel(), {"start": "S"})
    assert recording.prediction.get_lm_usage()["scripted/lm"]["prompt_tokens"] > 0


class OwnAdapter(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a = dspy.Predict("history -> offer")

    def forward(self, start):
        with dspy.context(adapter=dspy.ChatAdapter()):
            return self.a(history=start)


def test_a_program_that_sets_its_own_adapter_is_refused(lm):
    with pytest.raises(UnrecordableCallError, match=r"'a'.*adapter"):
        record(OwnAdapter(), {"start": "S"})


def test_calls_from_raw_threads_are_refused_and_those_with_the_context_are_not(lm):
    class RawThreads(OwnAdapter):
        def forward(self, start):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(lambda: self.a(history=start)).result()

    with pytest.raises(UnrecordableCallError, match=r"'a'.*dspy\.Parallel"):
        record(RawThreads(), {"start": "S"})
    assert len(record(Fan(), {"start": "S"}).steps) == 5


def test_a_replay_with_other_inputs_stops_before_it_asks_an_lm(lm):
    program = Negotiation()
    recorded = scored(record(program, {"start": "S"}))
    before = lm.calls
    with pytest.raises(ReplayDivergedError, match="inputs that the recording does not have"):
        replay(program, {"start": "OTHER"}, recorded, Edit(2, BID))
    assert lm.calls == before


def test_a_replay_whose_control_flow_changed_is_refused_even_if_the_program_swallows_errors(lm):
    class Moody(Panel):
        skip = False

        def forward(self, start):
            try:
                if not self.skip:
                    self.first(history="first")
                else:
                    self.second(history="another")
            except Exception:
                pass
            return self.judge(history=start)

    program = Moody()
    recorded = scored(record(program, {"start": "S"}))
    program.skip = True
    with pytest.raises(ReplayDivergedError):
        replay(program, {"start": "S"}, recorded, Edit(1, {"verdict": "J"}))


def test_a_replay_that_drops_an_earlier_call_is_refused(lm):
    class Dropping(Panel):
        skip = False

        def forward(self, start):
            if not self.skip:
                self.first(history="first")
            return self.judge(history=start)

    program = Dropping()
    recorded = scored(record(program, {"start": "S"}))
    program.skip = True
    with pytest.raises(ReplayDivergedError, match="did not come again"):
        replay(program, {"start": "S"}, recorded, Edit(1, {"verdict": "J"}))


def test_an_edit_that_is_never_reached_is_refused(lm):
    class Skipping(Panel):
        skip = False

        def forward(self, start):
            offer = self.first(history=start).offer
            return offer if self.skip else self.judge(history=offer)

    program = Skipping()
    recorded = scored(record(program, {"start": "S"}))
    program.skip = True
    with pytest.raises(ReplayDivergedError, match="not reached"):
        replay(program, {"start": "S"}, recorded, Edit(1, {"verdict": "J"}))


def test_an_edit_must_name_the_output_fields(lm):
    program = Negotiation()
    recorded = scored(record(program, {"start": "S"}))
    with pytest.raises(ReplayDivergedError, match=r"fields \['bid'\].*\['bid', 'reasoning'\]"):
        replay(program, {"start": "S"}, recorded, Edit(0, {"bid": "no reasoning"}))


def test_an_edit_that_cannot_be_made_again_is_refused(lm):
    program = Negotiation()
    recorded = scored(record(program, {"start": "S"}))
    edit = Edit(0, {**recorded.steps[0].outputs, "bid": to_plain(object())})
    with pytest.raises(ReplayDivergedError, match=r"the edit cannot be made: .*'builtins:object'"):
        replay(program, {"start": "S"}, recorded, edit)


class Three(dspy.Module):
    def __init__(self):
        super().__init__()
        self.a = dspy.Predict("history -> offer")

    def forward(self, start):
        return [self.a(history=start).offer for _ in range(3)]


def test_samples_differ_and_a_sample_repeats():
    lm = ScriptedLM(lambda prompt: chat_reply(offer=f"seed {prompt.seed}"), temperature=1.0)
    dspy.configure(lm=lm, adapter=ADAPTER)
    first = record(Three(), {"start": "q"}, Sampling("0/1/example/0")).prediction
    other = record(Three(), {"start": "q"}, Sampling("0/1/example/1")).prediction
    again = record(Three(), {"start": "q"}, Sampling("0/1/example/0")).prediction
    assert first == again
    assert len({*first, *other}) == 6


def test_a_sample_made_before_is_served_from_dspys_cache():
    lm = ScriptedLM([chat_reply(offer=f"reply {number}") for number in range(6)], temperature=1.0, cache=True)
    dspy.configure(lm=lm, adapter=ADAPTER)
    first = record(Three(), {"start": "cached?"}, Sampling("k0"))
    other = record(Three(), {"start": "cached?"}, Sampling("k1"))
    again = record(Three(), {"start": "cached?"}, Sampling("k0"))
    assert first.prediction == again.prediction != other.prediction
    assert lm.calls == 6
    assert sum(step.usage.calls for step in again.steps) == 0  # what the cache serves costs nothing


def test_greedy_calls_get_no_rollout_id():
    lm = ScriptedLM(lambda prompt: chat_reply(offer=str(prompt.seed)), temperature=0.0)
    dspy.configure(lm=lm, adapter=ADAPTER)
    assert record(Three(), {"start": "q"}, Sampling("key")).prediction == ["None"] * 3


def test_demonstrations_are_shown_and_the_predictor_keeps_its_own(lm):
    program = Three()
    demo = dspy.Example(history="shown once", offer="like this").with_inputs("history")
    recording = record(program, {"start": "q"}, Sampling(demos={"a": [demo]}))
    assert all("shown once" in prompt.text for prompt in lm.requests)
    assert [step.num_demos for step in recording.steps] == [1, 1, 1]
    assert program.a.demos == []


def test_sixty_four_threads_on_one_program_never_mix(lm):
    program = Negotiation()
    start = threading.Barrier(64)

    def job(number: int) -> bool:
        mine = f"S{number:02d}_"
        start.wait(timeout=30)
        recording = record(program, {"start": mine}, Sampling(mine))
        again = replay(program, {"start": mine}, scored(recording), Edit(3, {"offer": f"<{mine}>"}))
        texts = [text for run in (recording, again) for step in run.steps for text in step.inputs.values()]
        return (
            all(re.findall(r"S\d\d_", text) == [mine] for text in texts)
            and again.prediction.verdict == f"V:o(b(<{mine}>))"
            and len(recording.steps) == len(again.steps) == 7
        )

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(job, range(64)))


# Random programs against a plain Python reading of the same plan


class Planned(dspy.Module):
    """A program that follows a plan: calls, loops, branches and parallel calls on values made so far."""

    def __init__(self, plan: list, num_predictors: int):
        super().__init__()
        self.plan = plan
        # Neighbours share a signature text, so nothing but the name tells them apart.
        self.agents = [
            dspy.Predict(dspy.Signature("text -> out", f"Style {number // 2}.")) for number in range(num_predictors)
        ]

    def forward(self, text):
        return dspy.Prediction(made=follow(self.plan, text, self._call, self._parallel))

    def _call(self, number, text):
        return self.agents[number % len(self.agents)](text=text).out

    def _parallel(self, number, texts):
        calls = [(self.agents[number % len(self.agents)], {"text": text}) for text in texts]
        return [found.out for found in dspy.Parallel(num_threads=4, disable_progress_bar=True)(calls)]


def follow(plan, text, call, parallel):
    values = [text]
    for kind, number, source, times in plan:
        value = values[source % len(values)]
        if kind == "call":
            values.append(call(number, value))
        elif kind == "loop":
            for _ in range(times):
                value = call(number, value)
            values.append(value)
        elif kind == "branch":
            odd = int(hashlib.sha256(value.encode()).hexdigest(), 16) % 2
            values.append(call(number + odd, value))
        else:
            values.append("+".join(parallel(number, [f"{value}.{i}" for i in range(times)])))
    return values


def reply_to(style: str, text: str) -> str:
    return hashlib.sha256(f"{style}|{text}".encode()).hexdigest()[:8]


def planned_answer(prompt: Prompt) -> str:
    style = re.search(r"Style (\d+)\.", prompt.system).group(1)
    return chat_reply(out=reply_to(style, prompt.field("text")))


plans = st.lists(
    st.tuples(
        st.sampled_from(["call", "loop", "branch", "parallel"]), st.integers(0, 3), st.integers(0, 5), st.integers(1, 3)
    ),
    min_size=1,
    max_size=5,
)


@given(plan=plans, num_predictors=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_property_an_edit_equal_to_the_recording_costs_nothing_and_changes_nothing(plan, num_predictors):
    lm = ScriptedLM(planned_answer)
    program = Planned(plan, num_predictors)
    with dspy.context(lm=lm, adapter=ADAPTER):
        recording = record(program, {"text": "start"})
        recorded, calls = scored(recording), lm.calls
        for position, step in enumerate(recorded.steps):
            again = replay(program, {"text": "start"}, recorded, Edit(position, step.outputs))
            assert scored(again).id == recorded.id  # equal but for the order of concurrent calls
            assert again.prediction.made == recording.prediction.made
        assert lm.calls == calls


@given(plan=plans, num_predictors=st.integers(1, 4), data=st.data())
@settings(max_examples=100, deadline=None)
def test_property_an_edit_changes_what_is_downstream_and_nothing_else(plan, num_predictors, data):
    program = Planned(plan, num_predictors)
    with dspy.context(lm=ScriptedLM(planned_answer), adapter=ADAPTER):
        recording = record(program, {"text": "start"})
        recorded = scored(recording)
        position = data.draw(st.integers(0, len(recorded.steps) - 1))
        target = recorded.steps[position]
        again = replay(program, {"text": "start"}, recorded, Edit(position, {"out": "EDITED"}))

    names = [f"agents[{number}]" for number in range(num_predictors)]
    earlier_twins = sum(
        (step.predictor, step.inputs) == (target.predictor, target.inputs) for step in recorded.steps[:position]
    )
    asked = 0

    def call(number, text):
        """What the plan means, in plain Python, with the one answer replaced."""
        nonlocal asked
        name = names[number % num_predictors]
        if (name, {"text": text}) == (target.predictor, target.inputs):
            asked += 1
            if asked == earlier_twins + 1:
                return "EDITED"
        return reply_to(str(number % num_predictors // 2), text)

    expected = follow(plan, "start", call, lambda number, texts: [call(number, text) for text in texts])
    assert again.prediction.made == expected
    known = {(step.predictor, str(step.inputs)) for step in recorded.steps}
    for step in again.steps:
        assert (step.source == "live") <= ((step.predictor, str(step.inputs)) not in known or asked > 1)
        if step.started < target.started and step.source != "edited":
            assert step.source == "recorded"
