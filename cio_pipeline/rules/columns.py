"""A data frame's text columns as lists and Arrow arrays: iterating over pandas' own text costs as much as parsing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.json_text import MAX_LEVELS

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer[Any]]
Bytes = npt.NDArray[np.uint8]

TIME = pa.timestamp("us", "UTC")

MICROSECONDS_PER_SECOND = 1_000_000

SLICE = 256
"""How many texts are looked at together: few enough to stay in the processor's cache."""

ANY_BRACKET = 0xDF
"""A mask that turns `{` into `[`, and no other character into it."""


def utf8(column: pd.Series[Any]) -> pa.LargeBinaryArray:
    """Returns the texts in UTF-8, null if there is none. An unpaired surrogate is encoded as Python encodes it
    (`surrogatepass`)."""
    if not isinstance(column.dtype, pd.StringDtype):
        encoded = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else None for text in column.tolist()]
        return pa.array(encoded, pa.large_binary())
    array = pa.array(column, pa.large_string(), from_pandas=True)
    return (array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array).cast(pa.large_binary())


def constant(rows: int, value: bool) -> pa.Array:
    """Returns an Arrow array with this value for each of so many rows."""
    return pa.array(np.full(rows, value))


def to_list(array: pa.Array) -> list[Any]:
    """Returns an Arrow array's values, None for nulls: much faster than its own `to_pylist`."""
    values: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
    return values


def text_array(column: pd.Series[Any]) -> pa.LargeStringArray:
    """Returns the texts of a column, null if there is none."""
    return as_text(utf8(column))


def texts(column: pd.Series[Any]) -> list[Any]:
    """Returns the texts of a column, None (or NaN, in a column of objects) for nulls."""
    return to_list(utf8(column).cast(pa.large_string())) if isinstance(column.dtype, pd.StringDtype) else column.tolist()


def matches(array: pa.Array, pattern: str) -> Bools:
    """Returns which values contain a match of this RE2 pattern; nulls do not."""
    is_match = pc.match_substring_regex(array, pattern).fill_null(False)
    return np.asarray(is_match, bool)


class Factorized(NamedTuple):
    """A column of texts as `pandas.factorize` gives it: each row's code, which is the place of its text among the
    unique ones, in order of first appearance."""

    codes: Integers
    uniques: list[str]

    def map(self, function: Callable[[str], bytes]) -> pa.LargeBinaryArray:
        """Returns the function's result for each row; it is called once for each unique text."""
        results = pa.array([function(text) for text in self.uniques], pa.large_binary())
        return results.take(pa.array(self.codes))

    def at(self, row: int) -> str:
        """Returns the text of a row."""
        return self.uniques[self.codes[row]]


def factorize(column: pd.Series[Any]) -> Factorized:
    """Factorizes a column of texts that has no nulls."""
    codes, uniques = pd.factorize(column)
    return Factorized(codes, uniques.tolist())


def microseconds(times: pd.Series[Any]) -> Integers:
    """Timestamps as microseconds since 1970."""
    return times.astype("datetime64[us, UTC]").astype("int64").to_numpy(np.int64)


def as_text(array: pa.LargeBinaryArray) -> pa.LargeStringArray:
    """Bytes that are known to be valid UTF-8, as text: no copy, no check."""
    return array.view(pa.large_string())


def are_deep(array: pa.LargeBinaryArray) -> Bools:
    """Returns which JSON may be nested deeper than R14 allows, as it has so many opening brackets."""
    slices = [_have_many_brackets(*offsets_and_data(array.slice(start, SLICE))) for start in range(0, len(array), SLICE)]
    return np.concatenate([np.zeros(0, dtype=bool), *slices])


def _have_many_brackets(offsets: Integers, data: Bytes) -> Bools:
    are_opening = np.flatnonzero((data & ANY_BRACKET) == ord("["))
    return np.diff(np.searchsorted(are_opening, offsets)) > MAX_LEVELS


def offsets_and_data(array: pa.LargeBinaryArray | pa.LargeStringArray) -> tuple[Integers, Bytes]:
    """Returns where each text begins, and where the last one ends, in the bytes of all; and these bytes."""
    _, offsets_buffer, data_buffer = array.buffers()
    if data_buffer is None or not data_buffer.size:
        return np.zeros(len(array) + 1, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    return offsets - offsets[0], np.frombuffer(data_buffer, dtype=np.uint8)[offsets[0] : offsets[-1]]
