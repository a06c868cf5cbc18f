"""Everything that is checked before the first LM call: a compile that cannot end well must not begin."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy import checks
from sirius_dspy.dspy_internals import is_compiled
from sirius_dspy.errors import DatasetError, SettingsError, UnpreparedProgramError
from sirius_dspy.local import LocalLM
from sirius_dspy.optimizer.schedule import ExampleRecord, Examples, Schedule, choose_examples
from sirius_dspy.optimizer.settings import AgentGroups, Settings, SharedWeights
from sirius_dspy.program import hidden_predictors, is_awaited, is_called, predictor_names, signature_of
from sirius_dspy.redact import remember_secrets
from sirius_dspy.repair.augmenters import Augmenter
from sirius_dspy.repair.critic_training import CRITIC
from sirius_dspy.running.demos import check_demo_fields, check_whole_demos
from sirius_dspy.training.images import media_fields
from sirius_dspy.training.trainers import Trainer

Agents = dict[str, tuple[str, ...]]
"""Agent name to the predictors that share its weights."""


def check_student(student: Any) -> None:
    """Refuse what is not an uncompiled program with predictors.

    Raises:
        UnpreparedProgramError: The message says what it is.
    """
    if not isinstance(student, dspy.Module):
        raise UnpreparedProgramError(f"The student is {student!r}, expected a `dspy.Module`.")
    if is_compiled(student):
        raise UnpreparedProgramError(
            "The student is already compiled, so DSPy hides its predictors. Compile `student.reset_copy()`, or go on "
            "from its weights with a fresh program: `program.set_lm(...)`, or set `student._compiled = False`."
        )
    if hidden := hidden_predictors(student):
        raise UnpreparedProgramError(
            f"The predictors {hidden} of the student {type(student).__name__} are where DSPy does not find them, so "
            "they could not be trained or saved. Keep each as an attribute of a `dspy.Module`, or in a list or dict "
            "that is one; lists in lists, sets, class attributes and objects that are no modules hide them."
        )
    if not predictor_names(student):
        raise UnpreparedProgramError(
            f"The student {type(student).__name__} has no predictors. Keep its `dspy.Predict` modules as attributes, "
            "or in lists or dicts that are attributes."
        )
    _check_runs(student, "student")


def _check_runs(program: dspy.Module, role: str) -> None:
    if not is_called(program) and not is_awaited(program):
        raise UnpreparedProgramError(
            f"The {role} {type(program).__name__} cannot be called: it has no `forward`. Define one, or `aforward`."
        )


def check_inputs(program: dspy.Module, examples: Iterable[dspy.Example], name: str) -> None:
    """Refuse examples whose inputs the program does not take, as far as its `forward` says what it takes.

    Raises:
        DatasetError: The message names the first bad example by its position.
    """
    forward = _method(program, "forward") or _method(program, "aforward")
    if forward is None or type(program).__call__ is not dspy.Module.__call__:
        return
    takes = inspect.signature(forward, follow_wrapped=False)  # a decorator may fill in some
    for position, example in enumerate(examples):
        inputs = dict(example.inputs().items())
        try:
            takes.bind(**inputs)
        except TypeError as error:
            raise DatasetError(
                f"{name}[{position}] has the inputs {sorted(inputs)}, which `forward{takes}` of "
                f"{type(program).__name__} does not take: {error}. Name them in `with_inputs(...)` as `forward` does."
            ) from error


def _method(program: dspy.Module, name: str) -> Any:
    """A method of the program's, without touching it on the program, which makes DSPy warn."""
    if name in vars(program):
        return vars(program)[name]
    found = inspect.getattr_static(type(program), name, None)
    return found.__get__(program, type(program)) if hasattr(found, "__get__") else found


def resolve_agents(program: dspy.Module, groups: AgentGroups | None, *, frozen: Iterable[str] = ()) -> Agents:
    """Which predictors share weights: each its own agent, but for the groups that the user names.

    Args:
        program: The student.
        groups: Agent name to predictor names; predictors not named are agents of their own. `SharedWeights` is one
            agent for all predictors that are not frozen.
        frozen: Names that stay out of `SharedWeights`.

    Raises:
        UnpreparedProgramError: A group names an unknown predictor, names one twice, or takes the name of another; or
            `dspy.Refine` or `dspy.BestOfN` holds predictors of several agents.
    """
    names = list(predictor_names(program))
    agents: Agents = {}
    if isinstance(groups, SharedWeights):
        together = tuple(name for name in names if name not in set(frozen))
        groups = {groups.name: together} if together else {}
    taken: dict[str, str] = {}
    for agent, predictors in (groups or {}).items():
        for predictor in predictors:
            if predictor not in names:
                raise UnpreparedProgramError(
                    f"Agent {agent!r} names the predictor {predictor!r}; the program has {names}."
                )
            if predictor in taken:
                raise UnpreparedProgramError(
                    f"Predictor {predictor!r} is in two agents, {taken[predictor]!r} and {agent!r}. It has one set of "
                    "weights, so it can be in one."
                )
            taken[predictor] = agent
        agents[agent] = tuple(predictors)
    for name in names:
        if name not in taken and name in agents:
            raise UnpreparedProgramError(f"The agent {name!r} is named like a predictor that is not in it.")
        if name not in taken:
            agents[name] = (name,)
    _check_shared_lm_modules(program, agents)
    return agents


def _check_shared_lm_modules(program: dspy.Module, agents: Agents) -> None:
    """`dspy.Refine` and `dspy.BestOfN` ask their module for its one LM, and raise once it has several."""
    names = {id(predictor): name for name, predictor in predictor_names(program).items()}
    agent_of = {predictor: agent for agent, predictors in agents.items() for predictor in predictors}
    for path, module in program.named_sub_modules():
        if not isinstance(module, dspy.Refine | dspy.BestOfN):
            continue
        inside = [names[id(predictor)] for predictor in module.predictors() if id(predictor) in names]
        if len({agent_of[name] for name in inside}) > 1:
            raise UnpreparedProgramError(
                f"{type(module).__name__} at {path!r} needs one LM for all its predictors, but {inside} are several "
                f"agents. Put them into one: `SiriuS(agents={{'refined': {inside}}})`."
            )


def check_frozen(frozen: Iterable[str], agents: Agents) -> frozenset[str]:
    """The frozen agents.

    Raises:
        UnpreparedProgramError: One is unknown, or no agent is left to train.
    """
    names = frozenset(frozen)
    if unknown := sorted(names - set(agents)):
        raise UnpreparedProgramError(f"`frozen` names {unknown}; the agents are {sorted(agents)}.")
    if names == set(agents):
        raise UnpreparedProgramError(f"All agents {sorted(agents)} are frozen. Leave at least one to train.")
    return names


def starting_lms(program: dspy.Module, agents: Agents) -> dict[str, dspy.LM]:
    """The LM that each agent starts from: its predictors', or DSPy's default.

    Raises:
        UnpreparedProgramError: A predictor has none, or the predictors of one agent have different ones.
    """
    predictors = predictor_names(program)
    lms: dict[str, dspy.LM] = {}
    for agent, names in agents.items():
        for name in names:
            lm = predictors[name].lm or dspy.settings.lm
            if lm is None:
                raise UnpreparedProgramError(
                    f"Predictor {name!r} has no LM. Call `program.set_lm(lm)` or `dspy.configure(lm=lm)` first."
                )
            first = lms.setdefault(agent, lm)
            if first is not lm and first.model != lm.model:
                raise UnpreparedProgramError(
                    f"The predictors {list(names)} share the weights of agent {agent!r}, but start from different LMs "
                    f"({first.model!r}, {lm.model!r}). Give them one LM, or make them separate agents."
                )
    return lms


def check_parts(
    program: dspy.Module,
    settings: Settings,
    trained: Agents,
    lms: Mapping[str, dspy.LM],
    teachers: Sequence[dspy.Module] = (),
) -> None:
    """Let augmenter, trainer and budget refuse what does not fit them.

    Raises:
        UnpreparedProgramError: As they say.
        SettingsError: As they say, or the trainer's price is no number from 0.
    """
    check_demos(settings.collect.demos or {}, program, is_whole=settings.collect.warm_start)
    if settings.augmenter is not None:
        settings.augmenter.check(program)
        check_critic(settings.augmenter, settings.trainer, lms)
    for agent in trained:
        settings.trainer.check(agent, lms[agent])
    critic = None if settings.augmenter is None else settings.augmenter.learning_critic()
    settings.trainer.check_agents([*trained, *([CRITIC] if critic else [])])
    learners = [*(lms[agent] for agent in trained), *([critic.lm] if critic else [])]
    prices = [(lm.model, settings.trainer.price(lm)) for lm in learners]
    for _, price in prices:
        checks.check(type(settings.trainer).__name__, {"price": price}, {"price": _PRICE})
    if settings.budget is not None:
        others = _own_lms(teachers, settings.augmenter)
        settings.budget.check_prices({lm.model for lm in (*lms.values(), *others)})
        settings.budget.check_training_prices({model for model, price in prices if price is None})


_PRICE = checks.optional(checks.number(0))


def check_critic(augmenter: Augmenter, trainer: Trainer, agents: Collection[str]) -> None:
    """Refuse a critic that is to learn, but cannot.

    Args:
        augmenter: It may have such a critic.
        trainer: It knows what can be trained.
        agents: Names of the program's agents.

    Raises:
        SettingsError: An agent has the critic's name, or the critic's LM cannot be fine-tuned.
    """
    critic = augmenter.learning_critic()
    if critic is None:
        return
    if CRITIC in agents:
        raise SettingsError(
            f"The critic is to be fine-tuned as an agent named {CRITIC!r}, but the program has an agent of that name. "
            f"Rename the program's: `SiriuS(agents={{'judge': [...]}})`, with its predictors in the list."
        )
    try:
        trainer.check(CRITIC, critic.lm)
    except UnpreparedProgramError as error:
        raise SettingsError(
            f"The critic has a `training`, but {type(trainer).__name__} cannot fine-tune its LM {critic.lm.model!r}. "
            "Leave out `training`, or pass a `critic` that can be fine-tuned, such as a `sirius_dspy.LocalLM(...)`. "
            f"The trainer says: {error}"
        ) from error


def check_schedule(schedule: Schedule | None, examples: Examples, iterations: int) -> None:
    """Let the schedule choose the examples of the first iteration, so that it fails now if it fails.

    Raises:
        SettingsError: It returned something else than keys of the examples.
    """
    if schedule is not None:
        choose_examples(schedule, examples, {key: ExampleRecord() for key in examples}, 1, iterations)


def check_media(
    program: dspy.Module,
    examples: Iterable[dspy.Example],
    agents: Agents,
    lms: Mapping[str, dspy.LM],
    trainer: Trainer,
) -> None:
    """Refuse agents that read pictures, sound or files with an LM that cannot be trained on them.

    Args:
        program: The student.
        examples: Of the trainset.
        agents: Those that are to be trained.
        lms: The LM of each.
        trainer: It knows what an LM can be trained on.

    Raises:
        UnpreparedProgramError: The message names the agent and the fields.
    """
    predictors, inputs = predictor_names(program), [dict(example.inputs().items()) for example in examples]
    for agent, names in agents.items():
        for name in names:
            fields = media_fields(signature_of(predictors[name]), inputs)
            if fields and not trainer.trains_on_images(lms[agent]):
                raise UnpreparedProgramError(
                    f"Agent {agent!r} reads images or other media ({name!r}: {', '.join(map(repr, fields))}), and "
                    f"{lms[agent].model!r} cannot be trained on them here. Leave it as it is with "
                    f"`SiriuS(frozen=[{agent!r}])`, or give it an LM and a trainer that can; a trainer says so by its "
                    "`trains_on_images(lm)`, a provider by a true attribute `trains_on_images`."
                )


def check_demos(demos: Mapping[str, Sequence[dspy.Example]], program: dspy.Module, *, is_whole: bool = False) -> None:
    """Refuse demonstrations for unknown predictors, and those that would silently be left out of prompts or rows.

    Args:
        demos: Predictor name to demonstrations.
        program: The one with these predictors.
        is_whole: Whether each must have all fields, to be trained on.

    Raises:
        SettingsError: One lacks a field.
        UnpreparedProgramError: The message names them.
    """
    predictors = predictor_names(program)
    if unknown := sorted(set(demos) - set(predictors)):
        raise UnpreparedProgramError(
            f"There are demonstrations for {unknown}; the predictors are {list(predictors)}. Key them by predictor "
            "name."
        )
    for name, shown in demos.items():
        signature = signature_of(predictors[name])
        check_demo_fields(f"Collect.demos[{name!r}]", shown, signature)
        if is_whole:
            check_whole_demos(f"Collect.demos[{name!r}]", shown, signature)


def check_teachers(teacher: Any, student: dspy.Module) -> list[dspy.Module]:
    """The teacher programs, as a list.

    Raises:
        UnpreparedProgramError: One is no program, or shares no predictor name with the student.
    """
    teachers = list(teacher) if isinstance(teacher, list | tuple) else [teacher] if teacher is not None else []
    for program in teachers:
        if not isinstance(program, dspy.Module):
            raise UnpreparedProgramError(f"The teacher is {program!r}, expected a `dspy.Module` or a list of them.")
        _check_runs(program, "teacher")
        without = [name for name, predictor in predictor_names(program).items() if predictor.lm is None]
        if without and dspy.settings.lm is None:
            raise UnpreparedProgramError(
                f"The teacher's predictors {without} have no LM. Call `teacher.set_lm(lm)` or `dspy.configure(lm=lm)` "
                "first."
            )
        # A compiled program hides nothing when it is the root; its names must be the student's to teach it.
        if not set(predictor_names(program)) & set(predictor_names(student)):
            raise UnpreparedProgramError(
                f"The teacher's predictors {list(predictor_names(program))} share no name with the student's "
                f"{list(predictor_names(student))}, so nothing could be learned from it."
            )
    return teachers


def check_executor(settings: Settings, programs: Sequence[dspy.Module], examples: Sequence[dspy.Example]) -> None:
    """Let the executor refuse what it cannot ship.

    Raises:
        SettingsError: The message names it.
    """
    if settings.executor is None:
        return
    parts = {"program": programs[0], "metric": settings.metric, "augmenter": settings.augmenter}
    parts |= {"teacher": programs[1:], "demonstrations": settings.collect.demos, "trainset": examples}
    settings.executor.check_parts(parts, _known_lms(programs, settings.augmenter))


def remember_lms(programs: Iterable[dspy.Module], *others: Any) -> None:
    """Know the credentials of all LMs that can be found now, before anything is written down."""
    for lm in _known_lms(programs, *others):
        remember_secrets(lm)


def _known_lms(programs: Iterable[dspy.Module], *others: Any) -> list[dspy.BaseLM]:
    default = dspy.settings.lm
    return [*([default] if isinstance(default, dspy.BaseLM) else []), *_own_lms(programs, *others)]


def _own_lms(programs: Iterable[dspy.Module], *others: Any) -> list[dspy.BaseLM]:
    lms = [predictor.lm for program in programs for predictor in predictor_names(program).values()]
    lms += [value for item in others for value in getattr(item, "__dict__", {}).values()]
    return [lm for lm in lms if isinstance(lm, dspy.BaseLM)]


def adapter_name(adapter: Adapter) -> str:
    """Module and class of an adapter."""
    return f"{type(adapter).__module__}.{type(adapter).__qualname__}"


def warn_about_valset() -> None:
    """Say that without a valset the gate and the choice of the best iteration see training examples."""
    warnings.warn(
        "No valset: the trainset is used to choose the best weights, which is too optimistic. Pass `valset=`.",
        UserWarning,
        stacklevel=4,
    )


def warn_about_adapter(adapter: Adapter, lms: Iterable[dspy.LM]) -> None:
    """Say that embedded models rarely keep to the formats of DSPy's own adapters."""
    local = sorted({lm.model for lm in lms if isinstance(lm, LocalLM)})
    if local and type(adapter).__module__.startswith("dspy."):
        warnings.warn(
            f"{local} answer under {type(adapter).__name__}, whose format small models rarely keep to, so most replies "
            "may not parse. Call `dspy.configure(adapter=sirius_dspy.PlainAdapter())` first.",
            UserWarning,
            stacklevel=4,
        )
