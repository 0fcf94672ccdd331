"""Text from outside is shown without email addresses, keys and escape sequences, however long it is."""

from __future__ import annotations

import base64
import html
import json
import re
import time
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.masking import LONGEST, QUOTES_A_KEY, mask, mask_key, printable, without_keys, without_values

ADDRESS, KEY = "jane@example.com", "Zq7kWm2Xv9LpTd4R"


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
def test_masking_a_long_text_is_fast(text: str) -> None:
    started = time.perf_counter()
    assert len(mask(text)) <= 3 * LONGEST
    without_keys(text, KEY)
    assert time.perf_counter() - started < 0.05


def test_an_address_at_the_cut_is_not_shown_in_part() -> None:
    text = "x " * (LONGEST // 2 - 3) + "jane.doe@example.com"
    assert "jane" not in mask(text)


@pytest.mark.parametrize(
    "text", ["jane%40example.com", "a=jane%40example.com", "JANE@EXAMPLE", "\x1b[1mjane@example.com", "a\njane@b"]
)
def test_an_address_is_hidden_whatever_surrounds_it(text: str) -> None:
    assert "jane" not in mask(text).lower()


def writings(text: str) -> dict[str, str]:
    """The ways in which a service may quote what it received."""
    return {
        "as it is": text,
        "upper case": text.upper(),
        "percent": quote(text, safe=""),
        "percent, twice": quote(quote(text, safe=""), safe=""),
        "every letter percent": "".join(f"%{ord(letter):02x}" for letter in text),
        "base64": base64.b64encode(text.encode()).decode(),
        "base64, behind something": base64.b64encode(f"site:{text}".encode()).decode(),
        "base64, for URLs": base64.urlsafe_b64encode(f"??>{text}".encode()).decode().rstrip("="),
        "hexadecimal": text.encode().hex(),
        "entities": "".join(f"&#{ord(letter)};" for letter in text),
        "hexadecimal entities": html.escape("".join(f"&#x{ord(letter):x};" for letter in text)),
        "code points": "".join(f"\\u{ord(letter):04x}" for letter in text),
        "bytes": "".join(f"\\x{ord(letter):02x}" for letter in text),
        "JSON": json.dumps({"given": text}),
        "parted by colours": "\x1b[31m".join(text),
        "parted by colours in JSON": json.dumps("\x1b[31m".join(text)),
        "parted by lines in JSON": json.dumps("\n".join(text)) if "@" not in text else text,
        "parted by nothing": "\u200b".join(text),
        "parted by NUL": "\0".join(text),
        "full width": "".join(chr(ord(letter) + 0xFEE0) if letter.isalnum() or letter == "@" else letter for letter in text),
    }


@pytest.mark.parametrize("writing", writings(""))
def test_an_address_is_masked_however_it_is_written(writing: str) -> None:
    written = writings(ADDRESS)[writing]
    shown = mask(f"it says {written}, and more")
    assert shown.startswith("it says ")
    assert shown.endswith(" and more")
    assert "jane" not in shown.lower()
    assert "example" not in shown.lower()
    assert written not in shown


@pytest.mark.parametrize("text", ["jane\n@example.com", "jane@\nexample.com", "jane @ example.com", "@example"])
def test_an_address_is_masked_if_a_line_ends_at_its_at_sign(text: str) -> None:
    shown = mask(f"to\n{text}")
    assert "jane" not in shown
    assert "example" not in shown


@pytest.mark.parametrize("writing", writings(""))
def test_a_text_that_quotes_a_key_is_not_shown_however_it_is_written(writing: str) -> None:
    assert without_keys(f"it says {writings(KEY)[writing]}, and more", "another", KEY) == QUOTES_A_KEY


@pytest.mark.parametrize("text", [KEY[:9], f"... {KEY[5:]}", "\n".join(KEY), " ".join(base64.b64encode(KEY.encode()).decode())])
def test_a_text_that_quotes_a_part_of_a_key_is_not_shown(text: str) -> None:
    assert without_keys(text, KEY) == QUOTES_A_KEY


@pytest.mark.parametrize("text", ["", "required identifiers.id", "key", KEY[:4], "0" * 5000])
def test_other_texts_are_shown(text: str) -> None:
    assert without_keys(text, KEY, "", "another") == text


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
def test_escape_sequences_are_removed(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(max_size=3 * LONGEST))
def test_any_text_becomes_one_line_of_valid_utf_8(text: str) -> None:
    shown = mask(text)
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in shown)
    assert not re.search(r"\w@\w", shown)
    shown.encode()


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.lists(st.text(max_size=20) | st.integers())), st.data())
def test_no_word_of_a_value_remains_whole_or_in_part(content: dict[str, list[str | int]], data: st.DataObject) -> None:
    words = [word for values in content.values() for value in values for word in re.findall(r"\w+", str(value))]
    quoted = " ".join(word[: data.draw(st.integers(1, len(word)))] for word in words)
    left = {word.casefold() for word in re.findall(r"\w+", without_values(quoted, content))} - content.keys()
    assert not {word for word in left if any(one.casefold().startswith(word) for one in words)}


def test_names_of_members_remain_in_a_text_without_values() -> None:
    content = {"plan": "Plan B", "vip": True, "n": 41}
    assert without_values("plan must not be B or 4 (TRUE), nor bee", content) == "plan must not be *** or *** (***), nor bee"
    assert without_values("'Jane\u200bDoe' is too long", {"name": "Jane\u200bDoe"}) == "'***' is too long"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("jane@example.com", "j***@e***.com"),
        ("a jane.doe+x@mail.example.co.uk, b", "a j***@m***.uk, b"),
        ("jane@localhost", "***@***"),
        ("mailto:jane@example.com", "mailto:j***@e***.com"),
        ("no address", "no address"),
    ],
)
def test_emails_are_masked_wherever_they_stand(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_ids_are_cut() -> None:
    keys = {
        "id:user-12345": "id us***345",
        "id:u": "id ***",
        "id:jane@x": "id ***@***",
        "email:j@example.com": "email j***@e***.com",
    }
    assert {key: mask_key(key) for key in keys} == keys
