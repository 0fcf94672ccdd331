"""Text columns as lists and Arrow arrays."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.json_text import LONG_INTEGER
from cio_pipeline.rules.columns import have_long_numbers, texts, to_list, utf8

TEXTS = st.lists(st.none() | st.text("1234567890 ,:-[{}a", max_size=60))


@given(TEXTS, st.integers(0, 3))
def test_every_number_of_19_digits_is_found_wherever_it_stands(values: list[str | None], start: int) -> None:
    array = utf8(pd.Series(values, dtype=object)).slice(start)
    expected = [value is not None and re.search(LONG_INTEGER, value) is not None for value in values[start:]]
    assert have_long_numbers(array).tolist() == expected


@pytest.mark.parametrize(("digits", "found"), [(18, False), (19, True), (20, True), (4301, True)])
@pytest.mark.parametrize("shift", range(4))
def test_a_number_is_long_from_19_digits_on(digits: int, found: bool, shift: int) -> None:
    column = pd.Series(["{}", "x" * shift + ":" + "7" * digits, "{}"], dtype=object)
    assert have_long_numbers(utf8(column)).tolist() == [False, found, False]


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]))))
def test_a_column_is_the_same_texts_whatever_pandas_keeps_them_in(values: list[str | None]) -> None:
    for column in (pd.Series(values, dtype=object), pd.Series(values, dtype="string"), pd.Series(values, dtype="str")):
        assert [None if pd.isna(text) else text for text in texts(column)] == values
        assert to_list(utf8(column)) == [None if text is None else text.encode() for text in values]
