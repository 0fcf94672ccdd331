"""A data frame's text columns as lists and Arrow arrays: iterating over pandas' own text costs as much as parsing it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc


def utf8(column: pd.Series[Any]) -> Any:
    """The texts as an Arrow array of bytes, null where there is none; half a surrogate pair is as Python encodes it."""
    if not isinstance(column.dtype, pd.StringDtype):
        encoded = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else None for text in column.tolist()]
        return pa.array(encoded, pa.large_binary())
    array = pa.array(column, pa.large_string(), from_pandas=True)
    return (array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array).cast(pa.large_binary())


def to_list(array: Any) -> list[Any]:
    """An Arrow array's values, None where there is none."""
    values: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
    return values


def texts(column: pd.Series[Any]) -> list[Any]:
    """The texts of a column, None (or NaN, in a column of objects) where there is none."""
    return to_list(utf8(column).cast(pa.large_string())) if isinstance(column.dtype, pd.StringDtype) else column.tolist()


def matches(array: Any, pattern: str) -> Any:
    """Which values of an Arrow array hold a match of this pattern (RE2): a numpy array of bool; a null holds none."""
    found = pc.match_substring_regex(array, pattern).fill_null(False)
    return found.to_numpy(zero_copy_only=False).astype(bool)


def codes_of(column: pd.Series[Any]) -> tuple[Any, list[str]]:
    """Each text's number, as a numpy array, and the different texts by these numbers: what is asked of each is asked once."""
    codes, different = pd.factorize(column)
    return codes, different.tolist()


def microseconds(times: pd.Series[Any]) -> Any:
    """Moments as microseconds since 1970: a numpy array of int64."""
    return times.astype("datetime64[us, UTC]").astype("int64").to_numpy(np.int64)


def text_frame(columns: dict[str, list[Any]]) -> pd.DataFrame:
    """A frame of text columns, given as lists of text or of UTF-8."""
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()}).to_pandas()
