"""A program as an object: what is found in it, whether it runs, and copies that share nothing that could change it."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import warnings
import weakref
from collections import OrderedDict, deque, namedtuple
from types import SimpleNamespace

import dspy
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_dspy import Collect, SiriuS, evaluate
from sirius_dspy.errors import NoSuccessError, UnpreparedProgramError, UnrecordableCallError
from sirius_dspy.program import (
    copy_program,
    hidden_predictors,
    lms_of,
    predictor_names,
    program_fingerprint,
    set_lms,
    signature_digest,
)
from sirius_dspy.running.record import record
from sirius_dspy.testing import ScriptedLM, ToyLM, chat_reply
from tests.toy import ADAPTER, exact, optimizer


@pytest.fixture(autouse=True)
def chat():
    dspy.configure(adapter=ADAPTER)


Pair = namedtuple("Pair", "left right")


class Worker(dspy.Module):
    """A module that `copy.deepcopy` refuses."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question):
        with self.lock:
            return self.ask(question=question)


class Helper:
    """A plain object with a predictor and a lock."""

    def __init__(self):
        self.lock = threading.Lock()
        self.ask = dspy.Predict("question -> answer")
        self.asked = []

    def __call__(self, question):
        self.asked.append(question)
        return self.ask(question=question)


class Box(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    held: object


class Slots:
    __slots__ = ("held", "unset")

    def __init__(self, held):
        self.held = held


class Program(dspy.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, question):
        return next(found for found in workers(self.held))(question=question)


def workers(value):
    """Every worker in the structures that the strategy below makes."""
    if isinstance(value, Worker):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from workers(item)
    elif isinstance(value, list | tuple | set | deque):
        for item in value:
            yield from workers(item)
    elif isinstance(value, Slots | Box):
        yield from workers(value.held)
    elif isinstance(value, SimpleNamespace):
        yield from workers(list(vars(value).values()))
    elif isinstance(value, functools.partial):
        yield from workers(value.args)


SHELLS = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "dict": lambda held: dict(zip("abc", held, strict=False)),
    "ordered": lambda held: OrderedDict(zip("abc", held, strict=False)),
    "slots": lambda held: Slots(held[0]),
    "box": lambda held: Box(held=held[0]),
    "pair": lambda held: Pair(held[0], threading.Lock()),
    "namespace": lambda held: SimpleNamespace(held=held[0], event=threading.Event()),
    "partial": lambda held: functools.partial(print, *held),
}


def structures(shells):
    """Plans of nested containers with workers in them: a name of a shell and what it holds, or `None` for a worker."""
    one = lambda inner: st.tuples(st.sampled_from(sorted(shells)), st.lists(inner, min_size=1, max_size=3))  # noqa: E731
    return st.recursive(st.none(), one, max_leaves=6)


def built(plan):
    return Worker() if plan is None else SHELLS[plan[0]]([built(inner) for inner in plan[1]])


@settings(deadline=None)  # a busy machine is no failure
@given(structures(SHELLS))
def test_every_module_is_copied_wherever_it_is_kept(plan):
    held = built(plan)
    program, lm = Program(held), ToyLM(skill=lambda prompt: chat_reply(answer="ok"))
    for worker in workers(held):
        worker.ask.lm = lm
    copied = copy_program(program)
    before, after = list(workers(held)), list(workers(copied.held))
    assert type(copied.held) is type(held)
    assert len(before) == len(after) > 0
    assert not {id(worker) for worker in before} & {id(worker) for worker in after}
    assert not {id(worker.ask) for worker in before} & {id(worker.ask) for worker in after}
    assert all(new.lock is old.lock and new.ask.lm is lm for old, new in zip(before, after, strict=True))
    assert all(new.ask.stage == old.ask.stage for old, new in zip(before, after, strict=True))


def test_a_copy_gets_other_lms_by_predictor_name_and_the_program_keeps_its_own():
    program, mine, other = Program([Worker(), Worker()]), ScriptedLM({}), ScriptedLM({}, "scripted/other")
    set_lms(program, {"held[0].ask": mine})
    copied = copy_program(program, {"held[1].ask": other})
    assert lms_of(program) == {"held[0].ask": mine, "held[1].ask": None}
    assert lms_of(copied) == {"held[0].ask": mine, "held[1].ask": other}


def test_lms_for_predictors_that_a_program_does_not_have_are_refused():
    program = Program([Worker()])
    with pytest.raises(UnpreparedProgramError, match=r"LMs for \['nobody'\]; the predictors are \['held\[0\].ask'\]"):
        copy_program(program, {"nobody": ScriptedLM({}), "held[0].ask": ScriptedLM({})})
    assert lms_of(program) == {"held[0].ask": None}


@settings(deadline=None)  # a busy machine is no failure
@given(structures({*SHELLS} - {"partial"}))  # what a function holds may be a tool's own
def test_a_predictor_is_found_by_dspy_or_named_as_hidden(plan):
    program = Program(built(plan))
    known = {id(predictor) for predictor in predictor_names(program).values()}
    missed = [worker for worker in workers(program.held) if id(worker.ask) not in known]
    assert len(hidden_predictors(program)) == len(missed)


class Wired(dspy.Module):
    """Everything that could lead a copy back to the original."""

    def __init__(self):
        super().__init__()
        self.worker = Worker()
        self.same = self.worker
        self.helper = Helper()
        self.workers = [self.worker]
        self.by_worker = {self.worker: "first"}
        self.method = self.run
        self.helper_method = self.helper.__call__
        self.partial = functools.partial(self.run, "q")
        self.closure = lambda: self.worker
        self.nested = lambda: self.closure()
        self.parallel = dspy.Parallel(disable_progress_bar=True)
        self.cycle = []
        self.cycle.append(self.cycle)
        self.react = dspy.ReAct("question -> answer", tools=[self.tool])
        count = 0

        def counter():
            nonlocal count
            count += 1
            return count

        self.counter = counter

    def tool(self, question: str) -> str:
        """Look it up."""
        return question

    def run(self, question):
        return self.worker


def test_a_copy_answers_through_itself():
    program = Wired()
    copied = copy_program(program)
    assert copied.worker is copied.same is copied.workers[0] is not program.worker
    assert copied.by_worker[copied.worker] == "first"
    assert copied.method("q") is copied.partial() is copied.closure() is copied.nested() is copied.worker
    assert copied.helper_method.__self__ is copied.helper is not program.helper
    assert copied.helper.ask is not program.helper.ask
    assert copied.react.tools["tool"].func.__self__ is copied
    assert copied.cycle[0] is copied.cycle is not program.cycle
    assert program.closure() is program.worker


def in_a_default(worker):
    return lambda found=worker: found


def in_a_named_default(worker):
    return lambda *, found=worker: found


def in_a_list(worker):
    listed = [{"it": worker}]
    return lambda: listed[0]["it"]


def in_an_attribute(worker):
    def find():
        return find.worker

    find.worker = worker
    return find


def in_a_partial(worker):
    ask = functools.partial(lambda found: found, worker)
    return lambda: ask()


def in_a_cached_function(worker):
    return functools.lru_cache(maxsize=3)(lambda: worker)


def in_a_cached_function_that_calls_itself(worker):
    @functools.cache
    def find(depth=3):
        return find(depth - 1) if depth else worker

    return find


@pytest.mark.parametrize(
    "hold",
    [
        in_a_default,
        in_a_named_default,
        in_a_list,
        in_an_attribute,
        in_a_partial,
        in_a_cached_function,
        in_a_cached_function_that_calls_itself,
    ],
    ids=lambda hold: hold.__name__,
)
def test_functions_of_a_copy_call_its_own_predictors_wherever_they_hold_them(hold):
    program = dspy.Module()
    program.worker = Worker()
    program.find = hold(program.worker)
    assert program.find() is program.worker
    copied = copy_program(program)
    assert copied.find() is copied.worker is not program.worker
    assert program.find() is program.worker


def test_functions_that_hold_no_part_of_the_program_are_shared():
    program = Wired()
    copied = copy_program(program)
    assert copied.counter is program.counter


def test_a_copy_of_a_copy_is_whole():
    program = Wired()
    again = copy_program(copy_program(program))
    assert list(predictor_names(again)) == list(predictor_names(program))
    assert again.closure() is again.worker


def test_what_a_class_says_about_copying_it_is_respected():
    class Shared:
        def __deepcopy__(self, memo):
            return self

    class Reset:
        def __init__(self):
            self.lock, self.count = threading.Lock(), 3

        def __getstate__(self):
            return {"count": self.count}

        def __setstate__(self, state):
            self.__init__()
            self.count = state["count"]

    program = dspy.Module()
    program.shared, program.reset = Shared(), Reset()
    copied = copy_program(program)
    assert copied.shared is program.shared
    assert copied.reset.lock is not program.reset.lock
    assert copied.reset.count == 3


def test_an_object_of_a_package_that_cannot_be_copied_is_shared_whole():
    import concurrent.futures

    program = dspy.Module()
    program.pool = concurrent.futures.ThreadPoolExecutor(1)
    program.nested = {"pool": [program.pool]}
    copied = copy_program(program)
    assert copied.pool is copied.nested["pool"][0] is program.pool
    assert copied.nested["pool"] is not program.nested["pool"]
    program.pool.shutdown()


def test_a_judge_in_a_reward_function_stays_the_users_own():
    judge = dspy.Predict("answer -> verdict")
    program = dspy.Module()
    program.best = dspy.BestOfN(Worker(), N=2, reward_fn=lambda args, found: judge(answer="a"), threshold=1.0)
    copied = copy_program(program)
    assert copied.best.reward_fn is program.best.reward_fn
    assert hidden_predictors(program) == []


# Where predictors may be


class OnTheClass(dspy.Module):
    ask = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.ask(question=question)


@pytest.mark.parametrize(
    ("held", "path"),
    [
        (lambda: [[dspy.Predict("question -> answer")]], r"held\[0\]\[0\]"),
        (lambda: {"team": [dspy.Predict("question -> answer")]}, r"held\['team'\]\[0\]"),
        (lambda: ({"a": Worker()},), r"held\[0\]\['a'\]\.ask"),
        (lambda: {dspy.Predict("question -> answer")}, r"held\{\.\.\.\}"),
        (Helper, r"held\.ask"),
        (lambda: Slots(Worker()), r"held\.held\.ask"),
    ],
)
def test_predictors_that_dspy_does_not_find_are_named_before_the_first_call(held, path, tmp_path):
    lm, program = ToyLM(skill=lambda prompt: chat_reply(answer="ok")), Program(held())
    program.known = dspy.Predict("question -> answer")
    trainset = [dspy.Example(question="q", answer="ok").with_inputs("question")]
    with dspy.context(lm=lm), pytest.raises(UnpreparedProgramError, match=path):
        optimizer(tmp_path).compile(program, trainset=trainset, valset=trainset)
    assert lm.calls == 0


def test_a_predictor_on_the_class_is_named():
    assert hidden_predictors(OnTheClass()) == ["ask"]


def test_predictors_of_a_compiled_part_are_hidden_on_purpose():
    program = dspy.Module()
    program.part = Program([[dspy.Predict("question -> answer")]])
    program.part._compiled = True
    assert hidden_predictors(program) == []


def test_a_predictor_made_in_forward_is_told_with_its_line():
    class Makes(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question):
            return dspy.Predict("question -> answer")(question=self.ask(question=question).answer)

    lm = ScriptedLM(lambda prompt: chat_reply(answer="ok"))
    with dspy.context(lm=lm), pytest.warns(UserWarning, match=r"test_program\.py:\d+ calls a `dspy\.Predict`") as seen:
        record(Makes(), {"question": "q"})
    assert {warning.filename for warning in seen} == {__file__}


def test_advice_that_refine_asks_for_is_no_predictor_of_the_user():
    program = dspy.Module()
    program.refined = dspy.Refine(Worker(), N=2, reward_fn=lambda args, found: 0.0, threshold=1.0)
    lm = ScriptedLM(lambda prompt: chat_reply(answer="ok", discussion="d", advice="{}"))

    class Asks(dspy.Module):
        def __init__(self):
            super().__init__()
            self.refined = program.refined

        def forward(self, question):
            return self.refined(question=question)

    with dspy.context(lm=lm), warnings.catch_warnings():
        warnings.simplefilter("error")
        recording = record(Asks(), {"question": "q"})
    assert [step.predictor for step in recording.steps].count("refined.module.ask") == 2


# Whether it runs


class CallOnly(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def __call__(self, question):
        return self.ask(question=question)


class Assigned(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.forward = self.run

    def run(self, question):
        return self.ask(question=question)


class Awaited(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    async def aforward(self, question):
        return await self.ask.acall(question=question)


class AsyncForward(Awaited):
    async def forward(self, question):
        return await self.ask.acall(question=question)


class AsyncAssigned(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.aforward = self.run

    async def run(self, question):
        return await self.ask.acall(question=question)


@pytest.mark.parametrize("make", [CallOnly, Assigned, Awaited, AsyncForward, AsyncAssigned])
def test_what_dspy_can_call_is_compiled(make, tmp_path):
    program = make()
    program.set_lm(ToyLM(skill=lambda prompt: chat_reply(answer="ok" if prompt.field("question") == "q0" else "no")))
    trainset = [dspy.Example(question=f"q{number}", answer="ok").with_inputs("question") for number in range(3)]
    settings = {"iterations": 1, "collect": Collect(samples=1), "augmenter": None}
    compiled = optimizer(tmp_path, **settings).compile(program, trainset=trainset, valset=trainset)
    assert compiled.detailed_results["iterations"][1]["agents"]["ask"]["rows"] == 1


def test_what_dspy_cannot_call_is_refused(tmp_path):
    program = dspy.Module()
    program.ask = dspy.Predict("question -> answer")
    program.set_lm(ToyLM())
    trainset = [dspy.Example(question="q", answer="ok").with_inputs("question")]
    with pytest.raises(UnpreparedProgramError, match=r"no `forward`"):
        optimizer(tmp_path).compile(program, trainset=trainset, valset=trainset)


def test_modules_that_hold_each_other_are_refused(tmp_path):
    program = Worker()
    program.child = dspy.Module()
    program.child.parent = program
    trainset = [dspy.Example(question="q", answer="ok").with_inputs("question")]
    for use in (
        lambda: optimizer(tmp_path).compile(program, trainset=trainset, valset=trainset),
        lambda: evaluate(program, trainset, exact),
    ):
        with (
            dspy.context(lm=ToyLM()),
            pytest.raises(UnpreparedProgramError, match="Worker hold each other in a circle"),
        ):
            use()


class Late(dspy.Module):
    """Answers with what calls its predictor when it is used."""

    def __init__(self, wrap):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.wrap = wrap

    def forward(self, question):
        return self.wrap(lambda number: self.ask(question=f"{question}{number}"))


LATE = [
    (lambda ask: (ask(number) for number in range(2)), list),
    (lambda ask: map(ask, range(2)), list),
    (lambda ask: dspy.Prediction(answers=map(ask, range(2))), lambda found: list(found.answers)),
    (lambda ask: ask, lambda found: found(1)),
]


@pytest.mark.parametrize(("wrap", "use"), LATE, ids=["generator", "map", "part", "function"])
def test_a_result_that_calls_predictors_later_is_refused_at_the_first_runs(wrap, use, tmp_path):
    program, lm = Late(wrap), ToyLM(skill=lambda prompt: chat_reply(answer="ok"))
    program.set_lm(lm)
    trainset = [dspy.Example(question=f"q{number}", answer="ok").with_inputs("question") for number in range(20)]
    settings = {"num_threads": 1, "run_dir": tmp_path}
    with pytest.raises(UnrecordableCallError, match=r"'ask' was called after the run"):
        SiriuS(lambda example, found, trace=None: bool(use(found)), **settings).compile(
            program, trainset=trainset, valset=trainset
        )
    assert lm.calls <= 4
    assert evaluate(program, trainset[:2], lambda example, found, trace=None: bool(use(found))).score == 1.0


def test_a_metric_may_ask_a_predictor_of_the_program_in_several_threads():
    program = Worker()
    program.judge = dspy.Predict("answer -> verdict")
    lm = ToyLM(skill=lambda prompt: chat_reply(**{"verdict" if prompt.asks_for("verdict") else "answer": "good"}))
    lm.engine.latency_s = 0.01  # so that calls of metrics fall into the runs of other threads
    program.set_lm(lm)
    examples = [dspy.Example(question=f"q{number}").with_inputs("question") for number in range(12)]
    metric = lambda example, found, trace=None: program.judge(answer=found.answer).verdict == "good"  # noqa: E731
    assert evaluate(program, examples, metric, num_threads=4).score == 1.0


def test_runs_that_call_no_predictor_are_told_from_a_curator_that_chooses_nothing(tmp_path):
    program = Late(lambda ask: dspy.Prediction(answer="ok"))
    program.set_lm(ToyLM())
    trainset = [dspy.Example(question="q", answer="ok").with_inputs("question")]
    with pytest.raises(NoSuccessError, match=r"called none of the predictors \['ask'\]"):
        optimizer(tmp_path).compile(program, trainset=trainset, valset=trainset)


def test_the_student_stays_as_it_was_whatever_its_lists_hold(tmp_path):
    class Keeps(dspy.Module):
        def __init__(self):
            super().__init__()
            self.workers = [Worker()]
            self.by_name = {"second": Worker()}
            self.asked = []
            self.lock = threading.Lock()

        def forward(self, question):
            self.asked.append(question)
            first = self.workers[0](question=question)
            return self.by_name["second"](question=first.answer)

    program = Keeps()
    demos = [dspy.Example(question="x", answer="ok").with_inputs("question")]
    program.set_lm(ToyLM(skill=lambda prompt: chat_reply(answer="ok")))
    for predictor in program.predictors():
        predictor.demos = list(demos)
    before = {name: (part, part.lm, copy.copy(part.demos)) for name, part in predictor_names(program).items()}
    trainset = [dspy.Example(question=f"q{number}", answer="ok").with_inputs("question") for number in range(3)]
    settings = {"iterations": 1, "collect": Collect(samples=1), "augmenter": None, "gate": None}
    compiled = optimizer(tmp_path, **settings).compile(program, trainset=trainset, valset=trainset)
    assert {name: (part, part.lm, part.demos) for name, part in predictor_names(program).items()} == before
    assert program.asked == []
    assert exact(trainset[0], compiled(question="q0"))


def test_signatures_of_programs_that_are_gone_are_not_kept():
    signature = dspy.Signature("question -> answer", "Answer in a word that nobody else asks for.")
    program = copy_program(predictor := dspy.Predict(signature))
    assert program_fingerprint(program) == program_fingerprint(predictor)
    signature_digest(signature)
    gone = weakref.ref(signature)
    del signature, program, predictor
    gc.collect()
    assert gone() is None
