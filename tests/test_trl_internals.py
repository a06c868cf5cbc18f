"""One canary for each thing of TRL that `sirius_dspy.local.trl_internals` uses beyond its documented API.

If one of these fails after an update of TRL or transformers, correct that module; its test says what has moved.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest

for package in ("torch", "trl", "transformers"):
    pytest.importorskip(package)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of swig, at import


def test_the_trainer_asks_one_method_for_the_order_of_its_rows():
    import transformers

    from sirius_dspy.local.trl_internals import SamplingTrainer

    ours = SamplingTrainer._get_train_sampler
    theirs = transformers.Trainer._get_train_sampler
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert "_get_train_sampler" in inspect.getsource(transformers.Trainer.get_train_dataloader)


def test_the_order_of_the_rows_is_the_one_that_was_built():
    from sirius_dspy.local.train import CompletionTrainer, LengthBatches

    trainer = object.__new__(CompletionTrainer)  # without a model, which the order does not need
    trainer.train_dataset = {"input_ids": [[1], [2, 3], [4]]}
    trainer.args = SimpleNamespace(per_device_train_batch_size=2, seed=0)
    order = trainer._get_train_sampler()
    assert isinstance(order, LengthBatches)
    assert sorted(order) == [0, 1, 2]


def test_trl_prepares_pairs_in_one_method_which_is_left_out():
    import trl

    from sirius_dspy.local.trl_internals import PairTrainer

    assert "self._prepare_dataset(train_dataset" in inspect.getsource(trl.DPOTrainer.__init__)
    pairs = object()
    assert object.__new__(PairTrainer)._prepare_dataset(pairs, None, None, "train") is pairs
