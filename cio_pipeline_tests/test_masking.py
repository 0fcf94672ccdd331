"""What others say is shown without an address and without what a terminal would obey, however long it is."""

from __future__ import annotations

import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.masking import LONGEST, mask, printable


@pytest.mark.parametrize(
    "text",
    [
        "a" * 16_000,
        "a" * 16_000 + "@",
        "@" * 16_000,
        "a@" * 8_000,
        "a." * 8_000 + "@b",
        "a@b" + ".c" * 8_000 + "!",
        "*" * 16_000,
        "<" * 16_000,
        "\x1b[" * 8_000,
        "\x1b]" * 8_000,
        "%40" * 5_000,
    ],
)
def test_a_long_text_takes_no_time(text: str) -> None:
    started = time.perf_counter()
    assert len(mask(text)) <= 3 * LONGEST
    assert time.perf_counter() - started < 0.05


def test_an_address_at_the_cut_is_not_shown_in_half() -> None:
    text = "x " * (LONGEST // 2 - 3) + "jane.doe@example.com"
    assert "jane" not in mask(text)


@pytest.mark.parametrize(
    "text", ["jane%40example.com", "a=jane%40example.com", "JANE@EXAMPLE", "\x1b[1mjane@example.com", "a\njane@b"]
)
def test_no_way_to_write_an_address_shows_it(text: str) -> None:
    assert "jane" not in mask(text).lower()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\r\nmore", "two lines more"),
        ("\x1b[31mred\x1b[0m", " red "),
        ("\x1b]0;title\x07text", " text"),
        ("\x1b]8;;http://x\x1b\\link", " link"),
        ("a\u202eb\u2028c\x9b31md\x00", "a b c 31md "),
        ("half \ud83d", "half  "),
        ("Käse 💡 ok", "Käse 💡 ok"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(max_size=3 * LONGEST))
def test_whatever_the_text_it_is_one_line_that_can_be_written(text: str) -> None:
    shown = mask(text)
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in shown)
    assert not re.search(r"\w@\w", shown)
    shown.encode()
