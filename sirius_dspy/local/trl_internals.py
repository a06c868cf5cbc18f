"""Uses of undocumented API of TRL and of the underlying trainer of Transformers.

If a new version changes that API, `tests/test_trl_internals.py` fails, and only this file must be changed.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer


class SamplingTrainer(SFTTrainer):
    """TRL's trainer, with a method to override that determines the order of the rows."""

    def build_sampler(self, rows: Any) -> torch.utils.data.Sampler[int]:
        """Return a sampler for the order of the training rows.

        Args:
            rows: A dataset with the column `input_ids`.
        """
        raise NotImplementedError

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return self.build_sampler(self.train_dataset if train_dataset is None else train_dataset)
