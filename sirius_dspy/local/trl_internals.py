"""Uses of undocumented API of TRL and of the underlying trainer of Transformers.

If a new version changes that API, `tests/test_trl_internals.py` fails, and only this file must be changed.
"""

from __future__ import annotations

from typing import Any

from trl import DPOTrainer


class PairTrainer(DPOTrainer):
    """TRL's trainer of preferences, for pairs that are tokenized already.

    TRL would write the prompts anew with the chat template, and not as the engine receives them.
    """

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset
