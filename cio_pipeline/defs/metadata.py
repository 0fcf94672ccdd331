"""Entries of a page in Dagster's UI that are seen at once: it folds long Markdown into a link, and never a table."""

from collections.abc import Mapping, Sequence

import dagster as dg

Row = Mapping[str, str | int | float]

MOST_MARKDOWN = 999
"""So many characters of Markdown Dagster's UI shows; more than that it folds into a link (dagster-webserver 1.13)."""


def table(rows: Sequence[Row], nothing: str = "none") -> dg.TableMetadataValue:
    """The rows as a table. The first row names the columns; where there is none, the table says so."""
    shown: Sequence[Row] = rows or [{"": nothing}]
    schema = dg.TableSchema([dg.TableColumn(name, _type(value)) for name, value in shown[0].items()])
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in shown], schema)


def size(count: int) -> str:
    """A number of bytes as it is read: `1.3 GB`."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _type(value: object) -> str:
    return "string" if isinstance(value, str) else "int" if isinstance(value, int) else "float"
