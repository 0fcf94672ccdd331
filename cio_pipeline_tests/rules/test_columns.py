"""Text columns as lists and Arrow arrays."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.json_text import LONG_INTEGER
from cio_pipeline.rules.columns import need_care, texts, to_list, utf8

TEXTS = st.lists(st.none() | st.text("1234567890 ,:-[{}a", max_size=60))


@given(TEXTS, st.integers(0, 3))
def test_every_object_with_a_number_of_19_digits_needs_care_wherever_it_stands(texts: list[str | None], start: int) -> None:
    objects = [text if text is None else "{" + text for text in texts]
    expected = [text is not None and re.search(LONG_INTEGER, text) is not None for text in objects[start:]]
    assert need_care(utf8(pd.Series(objects, dtype=object)).slice(start)).tolist() == expected


@pytest.mark.parametrize(("digits", "found"), [(18, False), (19, True), (20, True), (4301, True)])
@pytest.mark.parametrize("shift", range(4))
def test_a_number_is_long_from_19_digits_on(digits: int, found: bool, shift: int) -> None:
    column = pd.Series(["{}", "{" + "x" * shift + ":" + "7" * digits, "{}"], dtype=object)
    assert need_care(utf8(column)).tolist() == [False, found, False]


@pytest.mark.parametrize("shift", range(4))
def test_a_text_of_digits_needs_care_only_where_a_long_number_stands_beside_it(shift: int) -> None:
    text = '{"' + "x" * shift + '":"' + "7" * 20 + '"'
    assert need_care(utf8(pd.Series([text + "}", text + "," + "7" * 20 + "}"]))).tolist() == [False, True]


@given(st.lists(st.none() | st.text('{[a]}"', max_size=3), max_size=5), st.integers(0, 3))
def test_empty_text_and_more_than_200_brackets_need_care(texts: list[str | None], start: int) -> None:
    many = [text if text is None else text * 100 for text in texts]
    expected = [text is not None and (text == "" or text.count("{") + text.count("[") > 200) for text in many[start:]]
    assert need_care(utf8(pd.Series(many, dtype=object)).slice(start)).tolist() == expected


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]))))
def test_a_column_is_the_same_texts_whatever_pandas_keeps_them_in(values: list[str | None]) -> None:
    for column in (pd.Series(values, dtype=object), pd.Series(values, dtype="string"), pd.Series(values, dtype="str")):
        assert [None if pd.isna(text) else text for text in texts(column)] == values
        assert to_list(utf8(column)) == [None if text is None else text.encode() for text in values]
