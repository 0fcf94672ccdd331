"""Prints to the terminal: one line at a time, without characters that a terminal obeys."""

from __future__ import annotations

import sys
import unicodedata

from tqdm import tqdm

OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's control and format characters, lone surrogates, line and paragraph separators."""


def one_line(text: object) -> str:
    """Returns the text as one line: a service's answer may contain newlines, or sequences that move the cursor or hide text."""
    return "".join(" " if unicodedata.category(letter) in OBEYED else letter for letter in str(text)).strip()


def show(text: object, indent: str = "") -> None:
    """Prints one line, above the progress bars if there are any."""
    tqdm.write(indent + one_line(text))
    sys.stdout.flush()


def complain(text: object) -> None:
    """Prints one line as an error, after all that was printed before."""
    sys.stdout.flush()
    print(one_line(text), file=sys.stderr, flush=True)
