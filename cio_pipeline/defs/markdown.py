"""Tables for the pages of Dagster's UI, and the same as lines for a terminal."""

import re
from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

Row = Mapping[str, object]

SPECIAL = re.compile(r"([\\`*_\[\]<>!|~&])")
"""What Markdown would take for more than a character, so that a name shows no picture and makes no column."""


def table(rows: Sequence[Row], most: int | None = None) -> dg.MetadataValue:
    """The rows as a table, at most so many of them; what is beyond is counted below. The first row names the columns."""
    if not rows:
        return dg.MetadataValue.md("none")
    names, shown = list(rows[0]), rows[:most]
    heads = [f"| {' | '.join(map(_escaped, names))} |"]
    heads.append("|" + "|".join(" ---: " if _is_number(rows[0][name]) else " --- " for name in names) + "|")
    lines = [f"| {' | '.join(_escaped(_text(row[name])) for name in names)} |" for row in shown]
    return dg.MetadataValue.md("\n".join([*heads, *lines, *_more(rows, shown, before="\n")]))


def lines(rows: Sequence[Row], most: int | None = None) -> Iterator[str]:
    """The same, a line each, in columns of one width; nothing where there are no rows."""
    if not rows:
        return
    names, shown = list(rows[0]), rows[:most]
    cells = [names, *([_text(row[name]) for name in names] for row in shown)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(names))]
    right = [_is_number(rows[0][name]) for name in names]
    for line in cells:
        padded = (
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(line, widths, right, strict=True)
        )
        yield "  ".join(padded).rstrip()
    yield from _more(rows, shown)


def _more(rows: Sequence[Row], shown: Sequence[Row], before: str = "") -> list[str]:
    return [f"{before}and {len(rows) - len(shown):,} more"] if len(shown) < len(rows) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _text(value: object) -> str:
    return f"{value:,}" if _is_number(value) else " ".join(str(value).split())


def _escaped(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text)
