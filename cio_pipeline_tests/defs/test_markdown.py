"""Tables for the UI and the terminal show names as they are, whatever is in them."""

from __future__ import annotations

from cio_pipeline.defs.markdown import lines, table

ROWS = [{"name": "a|b\n![x](http://x)", "count": 1234}, {"name": "c", "count": 5}, {"name": "d", "count": 6}]


def test_a_name_makes_no_column_no_line_and_no_picture() -> None:
    assert str(table(ROWS, 2).value).splitlines() == [
        "| name | count |",
        "| --- | ---: |",
        r"| a\|b \!\[x\](http://x) | 1,234 |",
        "| c | 5 |",
        "",
        "and 1 more",
    ]


def test_lines_have_columns_of_one_width() -> None:
    assert list(lines(ROWS, 2)) == [
        "name                count",
        "a|b ![x](http://x)  1,234",
        "c                       5",
        "and 1 more",
    ]


def test_where_there_are_no_rows_a_page_says_so_and_a_terminal_nothing() -> None:
    assert table([]).value == "none"
    assert list(lines([])) == []
