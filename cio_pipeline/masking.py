"""Text of others made fit for logs and messages: without anybody's email address, and without what a terminal would obey."""

from __future__ import annotations

import re

LONGEST = 2000
"""Characters of a text that are looked at: more is in no message."""

NOT_IN_A_NAME = r"\s@\"'<>()\[\],;:/="
EMAIL = re.compile(
    rf"(?<![^{NOT_IN_A_NAME}])([^{NOT_IN_A_NAME}])[^{NOT_IN_A_NAME}]*@([^\s@.])[^\s@.]*(?:\.[\w-]+)*\.([\w-]+)",
)
ANY_AT = re.compile(r"(?<![^\s*])[^\s*]+?(?:@|%40)[^\s*]+", re.IGNORECASE)
"""Both look behind, so that they begin where a word begins, and not once more at each of its letters."""

ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]+")
"""Control characters, line ends, what turns or hides the text behind it, and halves of characters."""


def mask(text: str) -> str:
    """`jane@mail.example.com` -> `j***@m***.com`, wherever it stands in the text; any other `@` hides what is around it.

    The text is made `printable`, and cut at a word where it is very long.
    """
    masked = EMAIL.sub(r"\1***@\2***.\3", printable(text))
    return ANY_AT.sub("***@***", masked)


def printable(text: str) -> str:
    """The text on one line, without control characters and escape sequences; cut at a word where it is very long."""
    if len(text) > LONGEST:
        text = re.sub(r"\S+\Z", "", text[:LONGEST]) + "…"
    return UNSEEN.sub(" ", ESCAPE.sub(" ", text))
