"""The engines of this process: which kind a machine gets, and the one pool that lends them out.

Everything here is shared by all `LocalLM` objects, so that LMs hold no weights, no threads and no locks, and can be
copied, saved and pickled freely.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import Literal

from sirius_dspy.local.chat import load_chat
from sirius_dspy.local.engine import Engine
from sirius_dspy.local.models import resolve
from sirius_dspy.local.openvino_engine import OpenVINOEngine
from sirius_dspy.local.pool import EnginePool
from sirius_dspy.local.transformers_engine import TransformersEngine

Device = Literal["cpu", "cuda", "mps", "openvino"]
"""`openvino` is OpenVINO on the CPU; the others are PyTorch's names, for the Transformers engine."""

_CACHE_BYTES = 1 << 30
_turn = threading.Lock()  # one pipeline steps at a time: two side by side took a quarter longer for the same work
_loading = threading.Lock()  # one engine loads at a time: a load uses all cores, and lazy imports are not thread-safe
_creating = threading.Lock()  # guards the making of the pool: `lru_cache` alone would let racing threads make several


def pool_key(model_id: str, device: Device | None) -> str:
    """What the pool knows an engine by."""
    return f"{device or best_device()}:{model_id}"


def engines() -> EnginePool:
    """The pool of this process; it may take half of the memory that is free when it is first used."""
    with _creating:
        return _create_pool()


@lru_cache(maxsize=1)
def _create_pool() -> EnginePool:
    pool = EnginePool(_load, _size, limit=free_memory() // 2)
    atexit.register(pool.close)  # else threads inside OpenVINO would outlive the interpreter's end and crash it
    return pool


@lru_cache(maxsize=1)
def best_device() -> Device:
    """CUDA where there is a GPU, else OpenVINO where it is installed, else PyTorch on the CPU."""
    if Path("/dev/nvidiactl").exists() and importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return "cuda"
    return "openvino" if importlib.util.find_spec("openvino_genai") is not None else "cpu"


def free_memory() -> int:
    """Bytes that can be used without swapping; all of the machine's where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _load(key: str) -> Engine:
    device, model_id = key.split(":", 1)
    weights = resolve(model_id)
    with _loading:
        chat = load_chat(weights)
        if device == "openvino":
            return OpenVINOEngine(weights.gguf, chat, turn=_turn)
        return TransformersEngine(weights, chat, device=device)


def _size(key: str) -> int:
    """A guess from above: OpenVINO repacks the weights, and the cache of keys and values comes on top."""
    return 2 * resolve(key.split(":", 1)[1]).gguf.stat().st_size + _CACHE_BYTES
