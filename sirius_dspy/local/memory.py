"""What to do when a device has too little memory."""

from __future__ import annotations

import gc


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether PyTorch could not allocate memory on the device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


def free_device_memory() -> None:
    """Give back the memory that PyTorch keeps for later allocations.

    Call it outside the handler of the error, which keeps the tensors of the failed pass alive.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
