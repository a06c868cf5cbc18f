"""Everything that this package uses of TRL, and of the trainer of transformers beneath it, beyond the documented API.

A new version may rename it. Then this is the one file to change, and `tests/test_trl_internals.py` says what broke.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer


class SamplingTrainer(SFTTrainer):
    """TRL's trainer, with a method to override that orders the rows."""

    def build_sampler(self, rows: Any) -> torch.utils.data.Sampler[int]:
        """The order of the training rows.

        Args:
            rows: A dataset with the column `input_ids`.
        """
        raise NotImplementedError

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return self.build_sampler(self.train_dataset if train_dataset is None else train_dataset)
