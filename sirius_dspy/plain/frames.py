"""Writes and reads values of pandas: frames, series, points and spans of time, and missing values.

Only this file uses pandas, and imports it only for such values.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any

from sirius_dspy.plain.classes import TYPE

Convert = Callable[[Any], Any]
"""Writes or reads a value inside one of pandas."""


def write_frame(value: Any, kind: type, write: Convert) -> Any:
    """Return a tagged value; `None` if it is not one of pandas, or would not read back equal."""
    import pandas

    if value is pandas.NaT or value is pandas.NA:
        return {TYPE: "absent", "value": "NaT" if value is pandas.NaT else "NA"}
    if kind is pandas.Timestamp or kind is pandas.Timedelta:
        about = {"unit": value.unit}
        if kind is pandas.Timestamp and isinstance(value.tzinfo, zoneinfo.ZoneInfo):
            about["zone"] = value.tzinfo.key
        written = {TYPE: kind.__name__, **about, "value": value.isoformat()}
        return written if _is_same_time(read_time(written), value) else None
    if kind is not pandas.DataFrame and kind is not pandas.Series:
        return None
    written = _write_table(value, kind, write)
    return written if _is_same_table(written, value) else None


def _write_table(value: Any, kind: type, write: Convert) -> dict[str, Any]:
    import pandas

    frame = value if kind is pandas.DataFrame else value.to_frame("value")
    columns = [frame.iloc[:, position] for position in range(frame.shape[1])]
    return {
        TYPE: kind.__name__,
        "index": _write_index(frame.index, write),
        "columns": _write_index(frame.columns, write) if kind is pandas.DataFrame else write(value.name),
        "dtypes": [_write_dtype(column.dtype, write) for column in columns],
        "value": [write(column.tolist()) for column in columns],
    }


def _write_index(index: Any, write: Convert) -> dict[str, Any]:
    import pandas

    written = {"names": write(list(index.names))}
    if isinstance(index, pandas.RangeIndex):
        return written | {"range": [index.start, index.stop, index.step]}
    if isinstance(index, pandas.MultiIndex):
        levels = [_write_index(level, write) for level in index.levels]
        return written | {"levels": levels, "codes": [list(map(int, codes)) for codes in index.codes]}
    freq = getattr(index, "freqstr", None)
    return written | {"dtype": _write_dtype(index.dtype, write), "freq": freq, "items": write(index.tolist())}


def _write_dtype(dtype: Any, write: Convert) -> Any:
    import pandas

    if isinstance(dtype, pandas.CategoricalDtype):
        return {"categories": _write_index(dtype.categories, write), "ordered": bool(dtype.ordered)}
    return str(dtype)


def read_time(tagged: Mapping[str, Any]) -> Any:
    """Read a point or a span of time."""
    import pandas

    if tagged[TYPE] == "Timedelta":
        return pandas.Timedelta(tagged["value"]).as_unit(tagged["unit"])
    read = pandas.Timestamp(tagged["value"]).as_unit(tagged["unit"])
    return read.tz_convert(zoneinfo.ZoneInfo(tagged["zone"])) if "zone" in tagged else read


def read_absent(tagged: Mapping[str, Any]) -> Any:
    """Read what pandas has for a missing value."""
    import pandas

    return pandas.NaT if tagged["value"] == "NaT" else pandas.NA


def read_frame(tagged: Mapping[str, Any], read: Convert) -> Any:
    """Read a frame or a series."""
    import pandas

    index = _read_index(tagged["index"], read)
    columns = [
        pandas.Series(read(items), index=index, dtype=_read_dtype(dtype, read))
        for items, dtype in zip(tagged["value"], tagged["dtypes"], strict=True)
    ]
    if tagged[TYPE] == "Series":
        return columns[0].rename(read(tagged["columns"]))
    frame = pandas.concat(columns, axis=1) if columns else pandas.DataFrame(index=index)
    frame.columns = _read_index(tagged["columns"], read)
    return frame


def _read_index(written: Mapping[str, Any], read: Convert) -> Any:
    import pandas

    names = read(written["names"])
    if "range" in written:
        return pandas.RangeIndex(*written["range"], name=names[0])
    if "levels" in written:
        levels = [_read_index(level, read) for level in written["levels"]]
        return pandas.MultiIndex(levels, written["codes"], names=names)
    index = pandas.Index(read(written["items"]), dtype=_read_dtype(written["dtype"], read), tupleize_cols=False)
    if written["freq"] is not None:
        index.freq = written["freq"]
    return index.rename(names[0])


def _read_dtype(written: Any, read: Convert) -> Any:
    import pandas

    if isinstance(written, str):
        return written
    return pandas.CategoricalDtype(_read_index(written["categories"], read), written["ordered"])


def _is_same_time(one: Any, other: Any) -> bool:
    zones = [getattr(item, "tzinfo", None) for item in (one, other)]
    same_zone = zones[0] == zones[1] or all(zone in (datetime.UTC, zoneinfo.ZoneInfo("UTC")) for zone in zones)
    return bool(one == other) and one.unit == other.unit and same_zone


def _is_same_table(written: Mapping[str, Any], value: Any) -> bool:
    """Return whether the table reads back the same, names and types of the axes included."""
    import pandas

    from sirius_dspy.plain.reading import from_plain

    check = pandas.testing.assert_frame_equal if written[TYPE] == "DataFrame" else pandas.testing.assert_series_equal
    try:
        check(from_plain(written), value, check_exact=True)
    except Exception:  # an unequal value, an unreadable one, or whatever pandas raises for an odd one
        return False
    return True
