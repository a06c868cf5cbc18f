"""One canary for each thing of TRL that `sirius_dspy.local.trl_internals` uses beyond its documented API.

If one of these fails after an update of TRL or transformers, correct that module; its test says what has moved.
"""

from __future__ import annotations

import inspect

import pytest

for package in ("torch", "trl", "transformers"):
    pytest.importorskip(package)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of swig, at import


def test_trl_prepares_pairs_in_one_method_which_is_left_out():
    import trl

    from sirius_dspy.local.trl_internals import PairTrainer

    assert "self._prepare_dataset(train_dataset" in inspect.getsource(trl.DPOTrainer.__init__)
    pairs = object()
    assert object.__new__(PairTrainer)._prepare_dataset(pairs, None, None, "train") is pairs
