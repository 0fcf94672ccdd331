"""Tables and numbers for the pages of Dagster's UI, and the same as lines for a terminal.

Dagster's UI shows a whole table, but hides long Markdown behind a link.
"""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

Row = Mapping[str, object]


def table(rows: Sequence[Row], limit: int | None = None) -> dg.TableMetadataValue:
    """Returns the rows as a table; at most `limit` of them, with a last row that says how many are not shown.

    The first row names the columns. Without rows the table says `none`.
    """
    first, shown = rows[0] if rows else {"": "none"}, rows[:limit]
    records = [{name: _cell(row[name]) for name in first} for row in shown or [first]]
    records += [{name: "" if column else text for column, name in enumerate(first)} for text in _more(rows, shown)]
    columns = [dg.TableColumn(name, _type(value)) for name, value in first.items()]
    return dg.MetadataValue.table([dg.TableRecord(record) for record in records], dg.TableSchema(columns))


def lines(rows: Sequence[Row], limit: int | None = None) -> Iterator[str]:
    """Yields the same as one line per row, in aligned columns; nothing if there are no rows."""
    if not rows:
        return
    names, shown = list(rows[0]), rows[:limit]
    cells = [names, *([_text(row[name]) for name in names] for row in shown)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [_is_number(rows[0][name]) for name in names]
    for line in cells:
        padded = map(lambda cell, width, is_right: cell.rjust(width) if is_right else cell.ljust(width), line, widths, right)
        yield "  ".join(padded).rstrip()
    yield from _more(rows, shown)


def size(count: int) -> str:
    """Returns a number of bytes as people read it: `1.3 GB`."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def percent(share: float) -> str:
    """Returns `1.25 %` for 0.0125."""
    return f"{round(share * 100, 2):g} %"


def _more(rows: Sequence[Row], shown: Sequence[Row]) -> list[str]:
    return [f"and {len(rows) - len(shown):,} more"] if len(shown) < len(rows) else []


def _type(value: object) -> str:
    return "int" if isinstance(value, int) else "float" if isinstance(value, float) else "string"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _cell(value: object) -> str | int | float:
    return value if isinstance(value, int | float) else _text(value)


def _text(value: object) -> str:
    return f"{value:,}" if _is_number(value) else " ".join(str(value).split())
