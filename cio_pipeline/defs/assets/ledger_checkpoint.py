"""A file in CIO_DATA_DIR that names the ledger's newest entry after the last delivery of these tables.

A ledger without that entry is stale: it was lost, or is an older copy. Deliveries that it lacks would be sent again, so a run
then stops before events that can start campaigns (docs/deploy.md, When a piece is lost).
"""

import json

from upath import UPath

from cio_pipeline.defs.resources import Store
from cio_pipeline.state.ledger import Entry
from cio_pipeline.tables.files import errors_of, make_folder, read_file, replace_file, unreadable, writing

FILE = "ledger_checkpoint.json"


def ledger_is_stale(store: Store) -> bool:
    """Whether the ledger lacks the entry that the checkpoint names. Raises `StorageError`."""
    entry = _read(store.tables.root / FILE)
    return entry is not None and not store.ledger.has(entry)


def save(store: Store) -> None:
    """Writes the ledger's newest entry to the file. Raises `StorageError` where the file cannot be written."""
    newest, path = store.ledger.newest(), store.tables.root / FILE
    if newest is None or newest == _read(path):
        return
    with writing(path.parent):
        make_folder(path.parent)
        replace_file(path, json.dumps(newest._asdict()).encode())


def _read(path: UPath) -> Entry | None:
    try:
        content = read_file(path)
        return None if content is None else Entry(**json.loads(content))
    except errors_of(path, TypeError, ValueError) as error:
        remedy = (
            ": it shows whether the ledger was lost. If the ledger (CIO_LEDGER_URL) is the one that was used before, remove"
            " that file."
        )
        raise unreadable(str(path), error, "", remedy) from None
