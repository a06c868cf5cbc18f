import pytest

from sirius_dspy.stats import wilson_interval


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
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_must_be_a_share(confidence):
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=confidence)
