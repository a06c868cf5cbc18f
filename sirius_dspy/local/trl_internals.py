"""Uses of undocumented API of TRL and of the underlying trainer of Transformers.

If a new version changes that API, `tests/test_trl_internals.py` fails, and only this file must be changed.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import DPOTrainer, SFTTrainer


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


class PairTrainer(DPOTrainer):
    """TRL's trainer of preferences, for pairs that are tokenized already.

    TRL would write the prompts anew with the chat template, and not as the engine receives them.
    """

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset
