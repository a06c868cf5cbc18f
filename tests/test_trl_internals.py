"""One canary for each thing of TRL that `sirius_dspy.local.trl_internals` uses beyond its documented API.

If one of these fails after an update of TRL or transformers, correct that module; its test says what has moved.
"""

from __future__ import annotations

import inspect

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
