"""A file in CIO_DATA_DIR that names the ledger's newest entry after the last delivery of these tables.

A ledger without that entry is stale: it was lost, or is an older copy. If the file was lost with it, Dagster's receipts show
that. Deliveries that the ledger lacks would be sent again, so a run then stops before events that can start campaigns
(docs/deploy.md, When a piece is lost).
"""

import json

import dagster as dg
from upath import UPath

from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.pages.receipts import DELIVERED
from cio_pipeline.defs.store import Store
from cio_pipeline.state.ledger import LedgerEntry
from cio_pipeline.tables.files import errors_of, make_folder, read_file, replace_file, unreadable, writing

FILE = "ledger_checkpoint.json"

MAX_RECEIPTS = 100
"""The number of the newest receipts that are read."""


def ledger_is_stale(store: Store, instance: dg.DagsterInstance) -> bool:
    """Returns whether the ledger lacks the entry that the checkpoint names or, without a checkpoint, all events of a day that
    Dagster's receipts call delivered. Raises `StorageError`."""
    entry = _read(store.tables.root / FILE)
    if entry is not None:
        return not store.ledger.has(entry)
    days = [day for day in _days_delivered(instance) if day >= (store.first_day_of_ledger or "")]
    return bool(set(days) - store.ledger.events_delivered(days).keys())


def _days_delivered(instance: dg.DagsterInstance) -> list[str]:
    """Returns the days of the newest receipts with delivered events."""
    records = instance.fetch_materializations(DELIVERY, limit=MAX_RECEIPTS).records
    receipts = {record.partition_key: record.asset_materialization for record in reversed(records)}
    return [
        day
        for day, receipt in receipts.items()
        if day and receipt and DELIVERED in receipt.metadata and receipt.metadata[DELIVERED].value
    ]


def save(store: Store) -> None:
    """Writes the ledger's newest entry to the checkpoint. Raises `StorageError` if that cannot be written."""
    newest, path = store.ledger.newest(), store.tables.root / FILE
    if newest is None:
        return
    with writing(path.parent):
        make_folder(path.parent)
        replace_file(path, json.dumps(newest._asdict()).encode())


def _read(path: UPath) -> LedgerEntry | None:
    try:
        content = read_file(path)
        return None if content is None else LedgerEntry(**json.loads(content))
    except errors_of(path, TypeError, ValueError) as error:
        remedy = (
            ": it shows whether the ledger was lost. If the ledger (CIO_LEDGER_URL) is the one that was used before, remove"
            " that file."
        )
        raise unreadable(str(path), error, "", remedy) from None
