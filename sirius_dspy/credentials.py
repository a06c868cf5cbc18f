"""Finds credentials in LM settings, in URLs and in the environment.

The name of a setting decides first. Harmless names (`temperature`, `api_version`, `Content-Type`) hold no secret. Names
such as `api_key` or `Cookie`, and all other headers, hold one. The value of any other setting counts as a secret unless
it is a single word or a number.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

MIN_LENGTH = 8
"""Length of the shortest secret that is searched for; shorter ones would also match ordinary words."""

_PASSPHRASE_LENGTH = 16
"""Length of the shortest phrase that no ordinary text contains by chance."""
_MAX_OBJECTS = 500
"""Maximum number of values to inspect in one object: an LM may hold an engine with everything in it."""
_MAX_DEPTH = 6

_ARGUMENTS = ("kwargs", "train_kwargs", "launch_kwargs")
"""Attributes in which an LM keeps its arguments."""
_CODE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)
_SECRET_WORDS = frozenset(
    ("apikey", "apikeys", "auth", "authorization", "bearer", "cookie", "cookies", "jwt", "key", "keys", "pass", "pat")
)
_SECRET_ENDINGS = ("credential", "credentials", "passphrase", "passwd", "password", "secret", "secrets", "token")
_KINDS_OF_KEYS = frozenset(
    (
        "access",
        "account",
        "ad",
        "api",
        "auth",
        "bearer",
        "client",
        "encryption",
        "hf",
        "id",
        "master",
        "private",
        "secret",
    )
)
_CONTAINERS = frozenset({"auth", "cookies", "headers"})
"""If a name ends in one of these words, every value below it counts as a credential."""

_ENDINGS = """
base dir domain effort email endpoint file folder format host id ids limit location mode model models name parallelism
path port provider region sock socket tier type uri url urls version
"""
_ASKING = """
additional_drop_params allowed_openai_params audio best_of bos_token cache cache_key chat_template chat_template_kwargs
continue_final_message drop_params dtype engine eos_token frequency_penalty function_call functions guided_choice
guided_json guided_regex include_stop_str_in_output keep_alive logit_bias logprobs max_completion_tokens max_new_tokens
max_output_tokens max_retries max_tokens min_p min_tokens modalities n num_beams num_ctx num_retries pad_token
parallel_tool_calls presence_penalty prompt_cache_key reasoning repetition_penalty request_timeout response_format
rollout_id safety_identifier seed service_tier skip_special_tokens stop stop_sequences stop_token store stream
stream_options stream_timeout temperature thinking timeout tool_choice tools top_a top_k top_logprobs top_p truncate
typical_p unk_token use_developer_role verbosity
"""
_HEADERS = """
accept accept_encoding accept_language anthropic_beta cache_control connection content_encoding content_length
content_type http_referer openai_beta openai_organization openai_project origin referer user_agent x_title
"""
_HARMLESS_ENDINGS = frozenset(_ENDINGS.split())
_HARMLESS = frozenset([*_ASKING.split(), *_HEADERS.split()])
"""LM settings and headers that describe the request and not the sender."""

_WORDS = re.compile(r"(?:[A-Z]?[a-z]+|[A-Z]+)(?:[\s_./:@-]+(?:[A-Z]?[a-z]+|[A-Z]+))*")
_WORDS_AND_NUMBER = re.compile(rf"{_WORDS.pattern}[\s_.-]?\d{{1,2}}")
_NUMBERS = re.compile(r"[\d\s.,:_/+-]+")
_OPAQUE = re.compile(r"[^\s{}\[\]()<>|\\^]+")
_SCHEME = re.compile(r"(?i)(?:basic|bearer|token|digest|apikey|key)\s+")
_CREDENTIAL_ID = re.compile(r"_key_id$")


@dataclass(frozen=True)
class Credential:
    """A value that must not be stored or logged."""

    text: str
    is_ordinary: bool = False
    """True if it reads like words or a number. Data may contain such a text by chance, so only messages hide it."""


@dataclass(frozen=True)
class _Place:
    """The place of a value in a structure, as far as it tells whether the value is a secret."""

    is_secret: bool = False
    """True if its name, or a name above it, indicates a credential."""
    is_harmless: bool = False
    is_setting: bool = True
    """True for an argument. For an attribute of an object, only a name that indicates a credential counts."""
    depth: int = 0

    def below(self, name: str) -> _Place:
        """Return the place of the entry with this name."""
        deeper = replace(self, depth=self.depth + 1)
        if is_harmless_name(name):
            return replace(deeper, is_harmless=True, is_secret=False)
        named = is_secret_name(name) if self.is_setting else is_secret_attribute(name)
        return replace(deeper, is_harmless=False, is_secret=self.is_secret or named or holds_only_credentials(name))


def is_secret_name(name: str) -> bool:
    """Return whether a setting, header or variable with this name holds a credential."""
    if is_harmless_name(name):
        return False
    return any(word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS) for word in _words(name))


def is_harmless_name(name: str) -> bool:
    """Return whether a setting with this name never holds a credential, whatever its value."""
    words = _words(name)
    plain = "_".join(words)
    if plain in _HARMLESS:
        return True
    return bool(words) and words[-1] in _HARMLESS_ENDINGS and not _CREDENTIAL_ID.search(plain)


def holds_only_credentials(name: str) -> bool:
    """Return whether everything below this name counts as a credential, as for headers and cookies."""
    return bool(words := _words(name)) and words[-1] in _CONTAINERS


def in_settings(settings: Mapping[str, Any]) -> Iterator[Credential]:
    """Yield the credentials in the arguments of an LM, at any depth."""
    yield from _search(settings, _Place(), [_MAX_OBJECTS])


def in_lm(lm: Any) -> Iterator[Credential]:
    """Yield the credentials that an LM holds in its arguments, provider and client."""
    budget = [_MAX_OBJECTS]
    model = str(getattr(lm, "model", ""))
    for name in _ARGUMENTS:
        settings = getattr(lm, name, None)
        yield from (item for item in _search(settings, _Place(), budget) if item.text not in model)
    attributes = {name: value for name, value in getattr(lm, "__dict__", {}).items() if name not in _ARGUMENTS}
    yield from (item for item in _search(attributes, _Place(is_setting=False), budget) if item.text not in model)


def in_address(address: str) -> Iterator[Credential]:
    """Yield the credentials in a URL: a password, a token as the user name, secrets in the query; encoded and plain."""
    try:
        parts = urlsplit(address)
    except ValueError:  # not a URL
        return
    user, at, _ = parts.netloc.rpartition("@")
    name, colon, password = user.partition(":")
    secret = password if colon else (name if parts.scheme in ("http", "https") else "")
    if at and secret:
        yield from (_credential(text) for text in {secret, unquote(secret)})
        pair = f"{unquote(name)}:{unquote(password)}"
        yield Credential(base64.b64encode(pair.encode()).decode())
    for key, value in parse_qsl(parts.query):
        if is_secret_name(key) or "pass" in key or _words(key)[-1:] in (("sig",), ("signature",)):
            yield _credential(value)


def in_environment() -> Iterator[Credential]:
    """Yield the credentials in the environment variables of this process."""
    for name, value in os.environ.items():
        if "://" in value:
            yield from in_address(value)
        elif len(value) >= MIN_LENGTH and is_secret_name(name) and not _is_path(value):
            credential = _credential(value)
            words = [word for word in _words(name) if not word.isdigit()]
            last = words[-1]
            if not credential.is_ordinary or last in _SECRET_WORDS or last.endswith(_SECRET_ENDINGS):
                yield credential


def _search(value: Any, place: _Place, budget: list[int]) -> Iterator[Credential]:
    """Yield the credentials in a value, at any depth.

    Args:
        value: Any object.
        place: The place of the value.
        budget: Number of values that may still be inspected; the whole search shares it.
    """
    budget[0] -= 1
    if budget[0] < 0 or place.depth > _MAX_DEPTH or value is None or isinstance(value, bool | int | float):
        return
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        yield from _in_text(value, place, budget)
    elif isinstance(value, Mapping):
        for name, item in list(value.items()):
            yield from _search(item, place.below(str(name)), budget)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in list(value)[:100]:
            yield from _search(item, replace(place, depth=place.depth + 1), budget)
    elif not isinstance(value, _CODE):
        attributes = getattr(value, "__dict__", {})
        inside = replace(place, is_setting=False, is_harmless=False)
        for name, item in list(attributes.items()):
            if name not in ("history", "callbacks", "requests"):
                yield from _search(item, inside.below(name), budget)


def _in_text(text: str, place: _Place, budget: list[int]) -> Iterator[Credential]:
    if "://" in text and not text.lstrip().startswith(("{", "[")):
        yield from in_address(text)
        return
    if place.is_harmless or len(text) < MIN_LENGTH:
        return
    if place.is_secret:
        yield from _in_secret(text, place, budget)
    elif place.is_setting and _OPAQUE.fullmatch(text) and not _is_plain(text):
        yield Credential(text, is_ordinary=bool(_WORDS.fullmatch(text) or _WORDS_AND_NUMBER.fullmatch(text)))


def _in_secret(text: str, place: _Place, budget: list[int]) -> Iterator[Credential]:
    """Yield a text that is a credential, and its parts that are credentials themselves."""
    if _is_path(text):
        return
    yield _credential(text)
    if text.lstrip().startswith("{"):
        try:
            yield from _search(json.loads(text), replace(place, depth=place.depth + 1), budget)
        except ValueError:  # it only looks like JSON
            return
    if scheme := _SCHEME.match(text):
        yield from _in_authorization(text[scheme.end() :])
    if "\n" in text:  # a private key: a message may quote a part of it
        yield from (Credential(line) for line in text.split("\n") if len(line) >= 2 * _PASSPHRASE_LENGTH)
    if "=" in text and (";" in text or re.match(r"[\w.-]+=", text)):  # cookies
        values = (part.partition("=")[2] for part in text.split(";"))
        yield from (_credential(value) for value in values if len(value) >= MIN_LENGTH and not value.isspace())


def _in_authorization(text: str) -> Iterator[Credential]:
    """Yield what follows the scheme of an `Authorization` header; after `Basic`, that includes a password."""
    if len(text) >= MIN_LENGTH:
        yield _credential(text)
    try:
        name, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return
    if colon and name and len(password) >= MIN_LENGTH:
        yield _credential(password)


def _credential(text: str) -> Credential:
    """Make a credential of a text that is one for certain."""
    is_short = len(text) < _PASSPHRASE_LENGTH
    return Credential(text, is_ordinary=bool(_NUMBERS.fullmatch(text)) or (is_short and bool(_WORDS.fullmatch(text))))


def _is_plain(text: str) -> bool:
    """Return whether the value of an unknown setting is a single word or a number, as a choice would be."""
    return text.isalpha() or bool(_NUMBERS.fullmatch(text))


def _is_path(text: str) -> bool:
    return text.startswith(("/", "~", "./", "../")) and os.path.exists(os.path.expanduser(text))


def is_secret_attribute(name: str) -> bool:
    """Return whether an attribute's name indicates a credential; `key` and `token` alone are harmless."""
    words = _words(name)
    if words[-1:] in (("key",), ("keys",), ("token",)):
        return words[-2:-1] != () and words[-2] in _KINDS_OF_KEYS and is_secret_name(name)
    return is_secret_name(name)


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    """Split a name into words: `X-Api-Key`, `x_api_key` and `xApiKey` all give `x`, `api` and `key`."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))
