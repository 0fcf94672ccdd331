"""Tables for the pages of Dagster's UI, and the same as lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

Row = Mapping[str, object]


def table(rows: Sequence[Row], most: int | None = None) -> dg.MetadataValue:
    """The rows as a table, at most so many of them, and how many there are besides. The first row names the columns.

    Dagster shows a table whole; Markdown of over 1,000 characters it hides behind a link.
    """
    if not rows:
        return dg.MetadataValue.text("none")
    names, shown = list(rows[0]), rows[:most]
    columns = [dg.TableColumn(name, "int" if _is_number(rows[0][name]) else "string") for name in names]
    records = [{name: row[name] if _is_number(row[name]) else _text(row[name]) for name in names} for row in shown]
    records += [{name: text if name == names[0] else "" for name in names} for text in _more(rows, shown)]
    return dg.MetadataValue.table([dg.TableRecord(record) for record in records], dg.TableSchema(columns))  # type: ignore[arg-type]


def lines(rows: Sequence[Row], most: int | None = None) -> Iterator[str]:
    """The same, a line each, in columns of one width; nothing where there are no rows."""
    if not rows:
        return
    names, shown = list(rows[0]), rows[:most]
    cells = [names, *([_text(row[name]) for name in names] for row in shown)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(names))]
    right = [_is_number(rows[0][name]) for name in names]
    for line in cells:
        padded = map(lambda cell, width, at_right: cell.rjust(width) if at_right else cell.ljust(width), line, widths, right)
        yield "  ".join(padded).rstrip()
    yield from _more(rows, shown)


def _more(rows: Sequence[Row], shown: Sequence[Row]) -> list[str]:
    return [f"and {len(rows) - len(shown):,} more"] if len(shown) < len(rows) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _text(value: object) -> str:
    return f"{value:,}" if _is_number(value) else " ".join(str(value).split())
