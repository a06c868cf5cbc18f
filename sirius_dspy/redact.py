"""Removes credentials from everything that is stored or logged: servers quote keys in errors, and libraries live long.

Known values are replaced wherever they occur: those of every LM that is called (`remember_secrets`), those in URLs
(`remember_address`), and those in the environment of the process. They are kept in memory only, for the life of the
process. Messages for people also lose anything that merely looks like a key.

Messages lose every known value. Data (inputs, outputs, training rows) keeps values that read like ordinary words, such
as the password `swordfish`, because nobody can tell where in a text they are the password.
"""

from __future__ import annotations

import base64
import html
import json
import re
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote, quote_plus

from sirius_dspy.credentials import (
    MIN_LENGTH,
    Credential,
    holds_only_credentials,
    in_address,
    in_environment,
    in_lm,
    in_settings,
    is_secret_name,
)

T = TypeVar("T")

HIDDEN = "[redacted]"

_ENVIRONMENT_S = 1.0
"""Age at which the values from the environment are read again. Data is searched at every LM call."""

_KEYS = re.compile(
    r"(?<![\w-])(?:"
    r"(?:sk|pk|rk|hf|gsk|xai|gh[opsur]|github_pat|glpat|xox[abprs])[-_](?P<body>[A-Za-z0-9_-]{16,})"
    r"|(?:AKIA|ASIA)(?=[A-Z]*\d)[A-Z0-9]{16}(?![\w])"
    r"|AIza[A-Za-z0-9_-]{35}(?![\w-])"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r"|(?i:bearer)\s+(?P<bearer>[A-Za-z0-9._~+/=-]{16,})"
    r")"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_PREFIXES = ("k-", "k_", "hf-", "hf_", "xai", "gh", "github", "glpat", "xox")
_SIGNS = (*_PREFIXES, "AKIA", "ASIA", "AIza", "eyJ", "earer", "EARER", "E KEY")
"""Every key shape contains one of these, and searching for them is much faster."""
_HEX = re.compile(r"[0-9a-f]+")
_MIN_RUN = 12
"""A key has at least one run of this many letters and digits without `-` or `_`."""
_LONG_RUN = 20
"""The length of such a run after `sk-`, where it need not look random: hardly any word is that long."""
_MIN_CHANGES = 0.3
"""Share of positions at which the kind of character changes in a random text; words and years change less often."""


class _Known:
    """Holds the known values of this process; all threads share one store."""

    lock = threading.Lock()  # protects all that follows
    remembered: ClassVar[set[Credential]] = set()
    environment: frozenset[Credential] = frozenset()
    read_at: float = float("-inf")
    lms: ClassVar[dict[int, tuple[weakref.ref[Any], dict[str, Any]]]] = {}
    in_messages: tuple[str, ...] = ()
    """Longest first, so that a value that contains another is replaced as a whole."""
    in_data: tuple[str, ...] = ()
    in_json: tuple[bytes, ...] = ()


def remember_secrets(lm: Any, settings: Mapping[str, Any] | None = None) -> None:
    """Remember the credentials of an LM. This is cheap enough to call before every LM call.

    Args:
        lm: A `dspy.LM` or any object with `kwargs`.
        settings: The arguments of this call.
    """
    if settings and not all(isinstance(value, int | float | None) for value in settings.values()):
        _remember(in_settings(settings))
    arguments = getattr(lm, "kwargs", None)
    arguments = arguments if isinstance(arguments, dict) else {}
    seen = _Known.lms.get(id(lm))
    if seen is not None and seen[0]() is lm and seen[1] == arguments:
        return
    _remember(in_lm(lm))
    number = id(lm)
    try:
        reference = weakref.ref(lm, lambda _: _Known.lms.pop(number, None))
    except TypeError:  # no weak reference: the LM is searched again next time
        return
    with _Known.lock:
        _Known.lms[number] = reference, dict(arguments)


def remember_address(address: str) -> None:
    """Remember the passwords in a URL."""
    _remember(in_address(address))


def redact(text: str, *secrets: str | None) -> str:
    """Return a message without known credentials, the given secrets, and anything that looks like a key."""
    _read_environment()
    given = _forms(Credential(secret) for secret in secrets if secret and len(secret) >= MIN_LENGTH)
    return _without_keys(_without(text, (*given, *_Known.in_messages)))


def hide(value: T) -> T:
    """Return plain data without known credentials, or the same object if it has none. Ordinary words are kept."""
    _read_environment_sometimes()
    needles = _Known.in_data
    return _map_texts(value, lambda text: _without(text, needles)) if needles else value


def hides_in(json_text: bytes) -> bool:
    """Return whether `hide` would change the value that a JSON text is of; at once for most.

    Args:
        json_text: In UTF-8, with escapes only for what JSON demands, as `orjson` writes it.
    """
    _read_environment_sometimes()
    return any(needle in json_text for needle in _Known.in_json)


def hide_keys(value: T) -> T:
    """Like `hide`, but also remove anything that looks like a key; for data that others will read."""
    _read_environment()
    needles = _Known.in_data
    return _map_texts(value, lambda text: _without_keys(_without(text, needles)))


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as plain values, without those that hold credentials, of any length and at any depth."""
    return {
        name: _without_secret_settings(value)
        for name, value in settings.items()
        if not is_secret_name(str(name)) and not holds_only_credentials(str(name))
    }


def redact_error(error: BaseException) -> BaseException:
    """Remove credentials from an exception and its causes in place, and return it.

    The LMs in the traceback are searched first, because the exception may come from an LM that was never seen before,
    such as a judge that a metric calls.
    """
    chain = list(_chain(error))
    for item in chain:
        _remember_those_of(item)
    for item in chain:
        _redact_one(item)
    return error


@contextmanager
def redact_errors() -> Iterator[None]:
    """Remove credentials from any exception that leaves the block."""
    try:
        yield
    except BaseException as error:
        redact_error(error)
        raise


# Known values


def _remember(credentials: Iterable[Credential]) -> None:
    new = {item for item in credentials if len(item.text) >= MIN_LENGTH and item.text.strip() not in ("", HIDDEN)}
    with _Known.lock:
        if not new <= _Known.remembered:
            _Known.remembered = _Known.remembered | new
            _build()


def _read_environment_sometimes() -> None:
    if time.monotonic() - _Known.read_at > _ENVIRONMENT_S:
        _read_environment()


def _read_environment() -> None:
    current = frozenset(item for item in in_environment() if len(item.text) >= MIN_LENGTH)
    with _Known.lock:
        _Known.read_at = time.monotonic()
        if current != _Known.environment:
            _Known.environment = current
            _build()


def _build() -> None:
    credentials = _Known.remembered | _Known.environment
    _Known.in_messages = _forms(credentials)
    _Known.in_data = _forms(item for item in credentials if not item.is_ordinary)
    texts = (json.dumps(form, ensure_ascii=False)[1:-1] for form in _Known.in_data)
    _Known.in_json = tuple(text.encode("utf-8", "surrogatepass") for text in texts)


def _forms(credentials: Iterable[Credential]) -> tuple[str, ...]:
    """Return every form in which a value can occur in texts, longest first."""
    forms: set[str] = set()
    for item in credentials:
        text = item.text
        forms |= {text, repr(text)[1:-1], html.escape(text), *_quote(text)}
        escaped = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
        forms |= escaped | {json.dumps(form)[1:-1] for form in escaped}  # JSON in JSON, as in logs of requests
        forms.add(base64.b64encode(text.encode("utf-8", "surrogatepass")).decode())
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _quote(text: str) -> set[str]:
    """Percent-encode a text, including lone surrogates, which `quote` refuses."""
    encoded = text.encode("utf-8", "surrogatepass")
    return {quote(encoded, safe=""), quote(encoded), quote_plus(encoded)}


# Removal


def _without(text: str, needles: Iterable[str]) -> str:
    for needle in needles:
        if needle in text:
            text = text.replace(needle, HIDDEN)
    return text


def _without_keys(text: str) -> str:
    return _KEYS.sub(_hide_key, text) if any(sign in text for sign in _SIGNS) else text


def _hide_key(match: re.Match[str]) -> str:
    """Return the replacement for a text that looks like a key; a long name made of words is kept."""
    whole, body, bearer = match[0], match["body"], match["bearer"]
    if body is not None:
        is_sk = whole.startswith("sk-")
        runs = re.split("[-_]", body)
        is_key = any(_is_random(run, may_be_hex=is_sk) or (is_sk and len(run) >= _LONG_RUN) for run in runs)
        return HIDDEN if is_key else whole
    if bearer is not None:
        is_key = any(len(run) >= _MIN_RUN and not run.isalpha() for run in re.split(r"[^A-Za-z0-9]", bearer))
        return whole.removesuffix(bearer) + HIDDEN if is_key else whole
    return HIDDEN


def _is_random(run: str, *, may_be_hex: bool) -> bool:
    if len(run) < _MIN_RUN:
        return False
    kinds = [(character.isdigit(), character.isupper()) for character in run]
    if len(set(kinds)) < 2 or (_HEX.fullmatch(run) and not may_be_hex):
        return False
    changes = sum(one != other for one, other in pairwise(kinds))
    return any(character.isalpha() for character in run) and changes >= _MIN_CHANGES * (len(run) - 1)


def _map_texts(value: Any, change: Any) -> Any:
    """Change every text in a plain value; return the same object if nothing changes."""
    if isinstance(value, str):
        return change(value) if len(value) >= MIN_LENGTH else value
    if isinstance(value, Mapping):
        entries = {_map_texts(name, change): _map_texts(item, change) for name, item in value.items()}
        same = all(name in entries and entries[name] is item for name, item in value.items())
        return value if same else entries
    if isinstance(value, list | tuple):
        items = [_map_texts(item, change) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else (tuple(items) if isinstance(value, tuple) else items)
    return value


def _without_secret_settings(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [_without_secret_settings(item) for item in value]
    return hide_keys(value)


# Exceptions


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all its causes, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        item = waiting.pop()
        if item is not None and id(item) not in seen:
            seen.add(id(item))
            waiting += [item.__cause__, item.__context__]
            waiting += item.exceptions if isinstance(item, BaseExceptionGroup) else []
            yield item


def _remember_those_of(error: BaseException) -> None:
    """Remember the credentials of LMs in the frames of an exception's traceback."""
    trace = error.__traceback__
    while trace is not None:
        here = trace.tb_frame.f_locals
        for name in ("self", "lm"):
            lm = here.get(name)
            if isinstance(getattr(lm, "kwargs", None), dict) and hasattr(lm, "model"):
                settings = here.get("kwargs")
                remember_secrets(lm, settings if isinstance(settings, dict) else None)
        trace = trace.tb_next


def _redact_one(error: BaseException) -> None:
    """Redact `args`, attributes and notes: most clients keep the message in attributes as well."""
    error.args = tuple(redact(item) if isinstance(item, str) else _redact_value(item) for item in error.args)
    for name, value in list(getattr(error, "__dict__", {}).items()):
        changed = _redact_value(value)
        if changed is not value:
            try:
                setattr(error, name, changed)
            except AttributeError:  # a property without a setter does not hold the text itself
                continue
    notes = getattr(error, "__notes__", None)
    if notes:
        error.__notes__ = [redact(note) for note in notes]


def _redact_value(value: Any) -> Any:
    return _map_texts(value, redact) if isinstance(value, str | list | tuple | dict) else value
