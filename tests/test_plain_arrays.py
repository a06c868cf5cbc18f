"""Arrays of NumPy and tables of pandas read back with their types, shapes and axes."""

from __future__ import annotations

import json

import numpy
import pandas
import pytest

from sirius_dspy.plain import digest, from_plain, opaque_parts, to_plain


@pytest.mark.parametrize(
    "value",
    [
        numpy.arange(6, dtype="int16").reshape(2, 3),
        numpy.array([1.5, float("nan"), float("-inf")], dtype="float32"),
        numpy.array([], dtype="int8").reshape(0, 3),
        numpy.array(5),
        numpy.array(["a", "bcd"]),
        numpy.array(["2024-01-02"], dtype="datetime64[D]"),
        numpy.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        numpy.array([1 + 2j]),
        numpy.array([True, False]),
        numpy.array([2**64 - 1], dtype="uint64"),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_arrays_read_back_with_type_and_shape(value):
    read = from_plain(json.loads(json.dumps(to_plain(value), allow_nan=False)))
    assert (read.dtype, read.shape) == (value.dtype, value.shape)
    assert read.tobytes() == value.tobytes()


@pytest.mark.parametrize(
    "value", [numpy.float32(0.1), numpy.int64(3), numpy.bool_(True), numpy.datetime64("2024-01-02")]
)
def test_numpy_scalars_read_back(value):
    read = from_plain(to_plain(value))
    assert type(read) is type(value)
    assert read == value


FRAMES = {
    "named index": pandas.DataFrame({"a": [1, 2], "b": ["x", None]}, index=pandas.Index(["p", "q"], name="i")),
    "named columns": pandas.DataFrame({"a": [1, 2]}).rename_axis(columns="c"),
    "times": pandas.DataFrame({"t": pandas.to_datetime(["2024-01-02", None]), "f": [0.5, float("nan")]}),
    "zones": pandas.DataFrame({"t": pandas.to_datetime(["2024-01-02", "2024-01-03"], utc=True)}),
    "dates": pandas.DataFrame({"a": [1, 2]}, index=pandas.date_range("2024", periods=2)),
    "spans": pandas.DataFrame({"a": pandas.to_timedelta([1, 2], "D")}),
    "categories": pandas.DataFrame({"c": pandas.Categorical(["a", "b"], ["b", "a", "z"], ordered=True)}),
    "absent": pandas.DataFrame({"a": pandas.array([1, None], dtype="Int64")}),
    "levels": pandas.DataFrame(
        {"a": [1, 2]}, index=pandas.MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["i", "j"])
    ),
    "levels of columns": pandas.DataFrame({("a", 1): [True]}),
    "same names": pandas.DataFrame([[1, 2]], columns=["a", "a"]),
    "range": pandas.DataFrame({"a": [1, 2]}, index=pandas.RangeIndex(5, 7)),
    "series": pandas.Series([1.0, 2.0], name="s"),
    "empty": pandas.DataFrame(),
}


@pytest.mark.parametrize("value", FRAMES.values(), ids=FRAMES)
def test_frames_read_back_with_their_types_and_the_names_of_their_axes(value):
    plain = to_plain(value)
    read = from_plain(json.loads(json.dumps(plain)))
    is_frame = isinstance(value, pandas.DataFrame)
    check = pandas.testing.assert_frame_equal if is_frame else pandas.testing.assert_series_equal
    check(read, value, check_exact=True)
    if len(value) > 1:
        assert digest(to_plain(value.iloc[::-1])) != digest(plain)


def test_frames_that_would_not_read_back_are_known_by_it():
    value = pandas.DataFrame({"p": pandas.period_range("2024", periods=2, freq="M")})
    assert [kind for _, kind in opaque_parts(to_plain({"a": value}))] == ["pandas:DataFrame"]
    for absent in (pandas.NaT, pandas.NA):
        assert from_plain(to_plain([absent]))[0] is absent
