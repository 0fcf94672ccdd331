"""A receipt, or any page's metadata, as a test reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from cio_pipeline.defs.pages.receipts import SAMPLE, THIS_RUN


def values(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[str, Any]:
    """The entries' values, with the rows of the table "this run" among them, and the lines of the sample."""
    found = {name: value.value for name, value in metadata.items()}
    if THIS_RUN in found:
        found["sample"] = list(rows(found[SAMPLE]))
        found |= rows(found[THIS_RUN])
    return found


def rows(table: Any) -> dict[Any, Any]:
    """A table's first column by its last."""
    names = [column.name for column in table.schema.columns]
    return {record.data[names[-1]]: record.data[names[0]] for record in table.records}
