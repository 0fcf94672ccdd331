"""Text columns as lists and Arrow arrays."""

from __future__ import annotations

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.rules.columns import are_deep, texts, to_list, utf8


@given(st.lists(st.none() | st.text('{[a]}"', max_size=3), max_size=5), st.integers(0, 3))
def test_json_with_more_than_200_brackets_may_be_deep(texts: list[str | None], start: int) -> None:
    many = [text if text is None else text * 100 for text in texts]
    expected = [text is not None and text.count("{") + text.count("[") > 200 for text in many[start:]]
    assert are_deep(utf8(pd.Series(many, dtype=object)).slice(start)).tolist() == expected


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]))))
def test_a_column_is_the_same_texts_whatever_pandas_keeps_them_in(values: list[str | None]) -> None:
    for column in (pd.Series(values, dtype=object), pd.Series(values, dtype="string"), pd.Series(values, dtype="str")):
        assert [None if pd.isna(text) else text for text in texts(column)] == values
        assert to_list(utf8(column)) == [None if text is None else text.encode() for text in values]
