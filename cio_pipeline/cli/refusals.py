"""Lists what Customer.io has refused and not accepted since."""

from __future__ import annotations

from collections import Counter

from cio_pipeline.cli.terminal import show
from cio_pipeline.customerio.sample import mask_key
from cio_pipeline.masking import mask
from cio_pipeline.settings.settings import Settings
from cio_pipeline.state.ledger import Ledger


def list_refusals(settings: Settings, partition: str | None, reason: str | None) -> None:
    """Prints a line for each refused item, without anybody's data, and last how many there are for which reason."""
    ledger = Ledger(settings.ledger_url, settings.ledger_lock_seconds)
    try:
        refused = ledger.refusals(partition, reason)
    finally:
        ledger.close()
    reasons = Counter[str]()
    for day, items in sorted(refused.items()):
        for item in items:
            show(f"{day}: {item.kind} of {mask_key(item.key)}: {mask(item.reason)}")
            reasons[mask(item.reason)] += 1
    total = f"{reasons.total():,} refused: " + ", ".join(f"{count:,} for {reason}" for reason, count in reasons.most_common())
    show(f"{total}." if reasons else "Nothing is refused.")
