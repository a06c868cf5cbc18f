"""The engines of this process: chooses their kind for the machine, and lends them from one pool.

All `LocalLM` objects share this state, so LMs hold no weights, threads or locks and can be copied, saved and pickled.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from functools import lru_cache
from pathlib import Path

from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.local.chat import Chat, load_chat
from sirius_dspy.local.devices import Device, best_device, check_device, free_engine_memory
from sirius_dspy.local.engine import Engine
from sirius_dspy.local.home import INSTALL, home
from sirius_dspy.local.models import resolve
from sirius_dspy.local.openvino_engine import OpenVINOEngine
from sirius_dspy.local.plain_decoder import find_obstacle
from sirius_dspy.local.pool import EnginePool
from sirius_dspy.local.transformers_engine import TransformersEngine
from sirius_dspy.local.weights import Weights

logger = logging.getLogger(__name__)

_SCORING = "openvino-scoring"
_CACHE_BYTES = 1 << 30
_turn = threading.Lock()  # one pipeline steps at a time: two at once took a quarter longer for the same work
_importing = threading.Lock()  # the lazy imports of Transformers are not thread-safe
_loading = threading.BoundedSemaphore(os.cpu_count() or 1)  # OpenVINO loads an engine on one core
_converting = threading.Lock()  # one conversion of a model, and one at a time: it takes memory
_creating = threading.Lock()  # guards the creation of the pool: with `lru_cache` alone, threads could create several


def pool_key(model_id: str, device: Device | None) -> str:
    """Return the key of an engine in the pool. What OpenVINO cannot read runs on PyTorch instead."""
    chosen = device or best_device()
    return f"{_or_cpu(model_id) if chosen == 'openvino' else chosen}:{model_id}"


def scoring_key(model_id: str, device: Device | None) -> str:
    """Return the key of an engine that can score replies: OpenVINO needs one without prefix caching for this."""
    key = pool_key(model_id, device)
    return f"{_SCORING}:{model_id}" if key.startswith("openvino:") else key


@lru_cache(maxsize=256)
def _or_cpu(model_id: str) -> Device:
    problem = find_obstacle(resolve(model_id))
    if problem is None:
        return "openvino"
    logger.info("%s runs on PyTorch, not on OpenVINO: %s.", model_id, problem)
    return "cpu"


def engines() -> EnginePool:
    """Return the pool of this process. It may use two thirds of the memory that is free at its first use.

    With GPUs, that is their memory.
    """
    with _creating:
        return _create_pool()


@lru_cache(maxsize=1)
def _create_pool() -> EnginePool:
    pool = EnginePool(_load, _size, limit=free_engine_memory() * 2 // 3, free=free_engine_memory)
    atexit.register(pool.close)  # otherwise OpenVINO's threads outlive the interpreter and crash it
    return pool


def _load(key: str) -> Engine:
    device, model_id = _split(key)
    check_device(device)
    weights = resolve(model_id)
    with _importing:
        chat = load_chat(weights)
        if device not in ("openvino", _SCORING):
            return TransformersEngine(weights, chat, device=device)
    gguf = weights.path if weights.is_gguf else _converted(weights, chat)
    with _loading:
        return OpenVINOEngine(gguf, chat, prefix_caching=device != _SCORING, turn=_turn)


def _converted(weights: Weights, chat: Chat) -> Path:
    """Return the GGUF file of a model folder, converted at its first use."""
    file = home("converted", f"{weights.digits}.gguf")
    with _converting:
        if file.is_file():
            return file
        try:
            from sirius_dspy.local.convert import convert
        except ImportError as error:
            raise MissingDependencyError(f"Converting models needs gguf and PyTorch. Run `{INSTALL}`.") from error
        return convert(weights, chat, file, weights.name)


def _size(key: str) -> int:
    """Estimate an upper bound: OpenVINO repacks the weights, and the key-value cache is added to it."""
    return 2 * resolve(_split(key)[1]).num_bytes + _CACHE_BYTES


def _split(key: str) -> tuple[str, str]:
    """Return device and model id; both may contain a colon."""
    device, separator, rest = key.partition(":local/")
    return device, separator.removeprefix(":") + rest
