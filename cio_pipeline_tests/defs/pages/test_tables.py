"""Tables for the UI and the terminal show names as they are, whatever is in them."""

from __future__ import annotations

from typing import Any

from cio_pipeline.defs.pages.tables import lines, table

ROWS = [{"name": "a|b\n![x](http://x)", "count": 1234}, {"name": "c", "count": 5}, {"name": "d", "count": 6}]


def test_a_page_shows_the_first_rows_and_how_many_there_are_besides() -> None:
    shown: Any = table(ROWS, 2)
    assert [record.data for record in shown.records] == [
        {"name": "a|b ![x](http://x)", "count": 1234},
        {"name": "c", "count": 5},
        {"name": "and 1 more", "count": ""},
    ]
    assert [(column.name, column.type) for column in shown.schema.columns] == [("name", "string"), ("count", "int")]


def test_lines_have_columns_of_one_width() -> None:
    assert list(lines(ROWS, 2)) == [
        "name                count",
        "a|b ![x](http://x)  1,234",
        "c                       5",
        "and 1 more",
    ]


def test_where_there_are_no_rows_a_page_says_so_and_a_terminal_nothing() -> None:
    assert [record.data for record in table([]).records] == [{"": "none"}]
    assert list(lines([])) == []
