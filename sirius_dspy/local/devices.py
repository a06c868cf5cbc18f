"""The devices of this machine: names, number of GPUs, free memory."""

from __future__ import annotations

import importlib.util
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from sirius_dspy.checks import Kind
from sirius_dspy.errors import SettingsError

Device = str
"""`cpu`, `cuda`, `cuda:1` or another number, or `mps`: devices of PyTorch; or `openvino`: OpenVINO on the CPU."""

_NAMES = re.compile(r"cpu|cuda(:\d+)?|mps|openvino")

DEVICE = Kind(
    lambda value: value is None or (isinstance(value, str) and _NAMES.fullmatch(value) is not None),
    "'cpu', 'cuda', 'cuda:1' or another number, 'mps', 'openvino' or None",
)
"""The kind of the setting `device`."""


@lru_cache(maxsize=1)
def count_gpus() -> int:
    """Return the number of NVIDIA's GPUs that PyTorch can use; PyTorch is only imported if there is a driver."""
    if not Path("/dev/nvidiactl").exists() or importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def best_device() -> Device:
    """Return CUDA if there is a GPU, otherwise OpenVINO if it is installed, otherwise PyTorch on the CPU."""
    if count_gpus():
        return "cuda"
    return "openvino" if importlib.util.find_spec("openvino_genai") is not None else "cpu"


def check_device(device: Device | None) -> None:
    """Check that this machine has a GPU of this number.

    Raises:
        SettingsError: It has not.
    """
    number = gpu_number(device)
    if number is not None and number >= count_gpus():
        raise SettingsError(
            f"`device` is {device!r}, but PyTorch finds {count_gpus()} GPUs on this machine, numbered from 0. Pass "
            "another number, or leave `device` out."
        )


def gpu_number(device: Device | None) -> int | None:
    """Return the number of a GPU that is named with its number."""
    return int(device.removeprefix("cuda:")) if device and device.startswith("cuda:") else None


def training_gpus(device: Device | None) -> list[int | None]:
    """Return the GPUs on which agents are trained side by side; `None` leaves the choice of one device to PyTorch.

    Args:
        device: That of the LM. With a number, it is the only one; without, all GPUs take part.
    """
    number = gpu_number(device)
    if number is not None:
        return [number]
    count = count_gpus() if device in (None, "cuda") else 0
    return list(range(count)) if count > 1 else [None]


def visible_gpu(number: int) -> str:
    """Return what `CUDA_VISIBLE_DEVICES` must be for a process that is to see one of this process's GPUs alone."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[number].strip() if number < len(names) else str(number)


def free_memory() -> int:
    """Return the bytes that can be used without swapping, or half of the memory if the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def free_gpu_memory(number: int) -> int:
    """Return the free bytes of a GPU."""
    import torch

    free: Any = torch.cuda.mem_get_info(number)[0]
    return int(free)


def free_engine_memory() -> int:
    """Return the free bytes where engines run by default: on all GPUs, or in the machine's memory without one."""
    return sum(map(free_gpu_memory, range(count_gpus()))) if count_gpus() else free_memory()
