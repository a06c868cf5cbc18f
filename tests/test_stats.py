import math

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sirius_dspy.stats import (
    bootstrap,
    holm,
    mcnemar,
    paired_bootstrap,
    spread,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # By hand with z = 1.959964, z^2 = 3.841459: 0/10 has high = z^2 / (10 + z^2) = 3.841459 / 13.841459.
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        # 5/10: 0.5 -+ z / (1 + z^2 / 10) * sqrt(0.025 + z^2 / 400) = 0.5 -+ 0.263405.
        (5, 10, 0.236595, 0.763405),
        # 81/263 is the worked example in Newcombe (1998), Statistics in Medicine 17, table I: 0.2553 to 0.3662.
        (81, 263, 0.2553, 0.3662),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_equals_the_values_worked_out_by_hand(successes, trials, low, high):
    interval = wilson_interval(successes, trials)
    assert interval.low == pytest.approx(low, abs=1e-4)
    assert interval.high == pytest.approx(high, abs=1e-4)


def test_more_confidence_is_wider_and_more_trials_are_narrower():
    usual, sure, large = wilson_interval(30, 100), wilson_interval(30, 100, confidence=0.99), wilson_interval(300, 1000)
    assert sure.low < usual.low < large.low < 0.3 < large.high < usual.high < sure.high


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 10**6), (10**6, 10**6), (1, 10**6)])
def test_interval_never_leaves_zero_to_one_and_holds_the_rate(successes, trials):
    low, high = wilson_interval(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="is not a share"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_must_be_a_share(confidence):
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=confidence)


def flips(gained, lost, same=3):
    before = [False] * gained + [True] * lost + [True, False] * same
    after = [True] * gained + [False] * lost + [True, False] * same
    return before, after


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [
        # By hand: twice the sum of C(n, k) for k up to the rarer count, over 2^n, and 1 at most.
        (4, 0, 2 / 16),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (1, 1, 1.0),
        (3, 2, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_equals_the_values_worked_out_by_hand(gained, lost, p_value):
    assert mcnemar(*flips(gained, lost)) == (gained, lost, pytest.approx(p_value, abs=1e-12))


@pytest.mark.parametrize(("gained", "lost"), [(600, 400), (21, 9), (1, 12)])
def test_mcnemar_equals_the_binomial_test_of_scipy(gained, lost):
    expected = scipy.stats.binomtest(gained, gained + lost).pvalue
    assert mcnemar(*flips(gained, lost)).p_value == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_is_symmetric_and_a_probability(pairs):
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = mcnemar(before, after), mcnemar(after, before)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.p_value == back.p_value
    assert 0 < there.p_value <= 1


def test_spread_is_the_mean_and_the_sample_standard_deviation():
    # 26, 28, 28 of 107: what the paper prints as 25.55 +/- 1.08; by hand, sd = sqrt((2 * (2/3)^2 + (4/3)^2) / 2) / 107.
    found = spread([26 / 107, 28 / 107, 28 / 107])
    assert found.mean == pytest.approx(82 / 321)
    assert found.sd == pytest.approx(math.sqrt((2 * (2 / 3) ** 2 + (4 / 3) ** 2) / 2) / 107)
    assert spread([0.5]) == (0.5, None, 1)


def test_holm_equals_the_values_worked_out_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04; none may be below the one before it.
    adjusted = holm({"d": 0.04, "a": 0.01, "b": 0.02, "c": 0.03})
    assert list(adjusted) == ["d", "a", "b", "c"]
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({"only": 0.03}) == {"only": 0.03}
    assert holm({}) == {}


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= adjusted[name] <= 1 for name, p in p_values.items())
    ranked = sorted(p_values, key=p_values.__getitem__)
    assert [adjusted[name] for name in ranked] == sorted(adjusted.values())


def test_bootstrap_of_large_samples_is_the_normal_interval():
    scores = [1, 0, 0, 1] * 100
    half = 1.959964 * math.sqrt(0.25 / 400)
    value, low, high = bootstrap([scores])
    assert value == 0.5
    assert (value - low, high - value) == (pytest.approx(half, rel=0.06), pytest.approx(half, rel=0.06))


def test_bootstrap_resamples_groups_not_rows():
    # Two groups of fifty equal items: half of the resamples draw one group twice, so the interval is all of 0 to 1.
    scores, groups = [0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50
    assert bootstrap([scores], groups=groups) == (0.5, 0.0, 1.0)
    assert bootstrap([scores]).low > 0.35


def test_bootstrap_weighs_groups_by_their_items():
    # Groups of 1 and 3 items: the mean is over items (1/4), and a resample of both groups has 4 items, not 2.
    assert bootstrap([[1, 0, 0, 0]], groups=["a", "b", "b", "b"], confidence=0.6) == (0.25, 0.0, 1.0)
    assert bootstrap([[1, 0, 0, 0]], groups=["a", "b", "b", "b"], confidence=0.1)[1:] == (0.25, 0.25)


def test_bootstrap_counts_the_luck_of_seeds_and_that_of_items():
    luck_of_seeds = [[0.0] * 200, [1.0] * 200]
    luck_of_items = [[0.0, 1.0] * 100] * 2
    assert bootstrap(luck_of_seeds) == (0.5, 0.0, 1.0)
    assert bootstrap(luck_of_items).low == pytest.approx(bootstrap(luck_of_items[:1]).low, abs=0.01)


def test_bootstrap_repeats_itself_and_follows_its_confidence():
    scores = [[0, 1, 1, 0, 1, 0.5, 0.25]]
    assert bootstrap(scores, seed=3) == bootstrap(scores, seed=3)
    usual, narrow = bootstrap(scores), bootstrap(scores, confidence=0.5)
    assert usual.low < narrow.low < usual.value < narrow.high < usual.high


def test_paired_bootstrap_uses_the_pairs():
    before = [0.0, 1.0] * 50
    assert paired_bootstrap([before], [before]) == (0.0, 0.0, 0.0)
    one_better = [1.0, *before[1:]]
    value, low, high = paired_bootstrap([before], [one_better])
    assert (value, low) == (pytest.approx(0.01), 0.0)
    assert high < 0.05  # two independent samples of 100 would give 0.15
    down = paired_bootstrap([one_better], [before])
    assert (down.value, down.high) == (pytest.approx(-0.01), 0.0)


def test_paired_bootstrap_pairs_seeds_and_groups():
    before, after = [[0.0] * 4, [1.0] * 4], [[1.0] * 4, [1.0] * 4]
    assert paired_bootstrap(before, after) == (0.5, 0.0, 1.0)
    assert paired_bootstrap([[0, 0, 1, 1]], [[1, 1, 1, 1]], groups=[1, 1, 2, 2]) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar([True], []), "1 and 0"),
        (lambda: spread([]), "0 scores"),
        (lambda: holm({"a": 1.5}), "not p-values"),
        (lambda: bootstrap([]), "The rows have"),
        (lambda: bootstrap([[]]), "The rows have"),
        (lambda: bootstrap([[1, 0], [1]]), r"The rows have \[1, 2\]"),
        (lambda: bootstrap([[1, 0]], groups=["a"]), "1 groups for 2 items"),
        (lambda: bootstrap([[1, 0]], confidence=95), "confidence"),
        (lambda: paired_bootstrap([[1]], [[1], [0]]), "1 and 2"),
        (lambda: paired_bootstrap([[1]], [[1, 0]]), "1 and 2"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
