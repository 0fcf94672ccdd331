"""Lists what Customer.io has refused and not accepted since."""

from __future__ import annotations

from collections import Counter

from cio_pipeline.cli.terminal import show
from cio_pipeline.masking import mask, mask_key
from cio_pipeline.settings.settings import Settings
from cio_pipeline.state.ledger import Ledger


def list_refusals(settings: Settings, partition: str | None, reason: str | None, limit: int) -> None:
    """Prints a line for each of the first `limit` refused items, without personal data, and finally the number of all of them
    by reason."""
    ledger = Ledger(settings.ledger_url, settings.ledger_lock_seconds)
    try:
        refused, counted = ledger.refusals(partition, reason, limit), ledger.open_refusals(partition, reason)
    finally:
        ledger.close()
    for day, items in refused.items():
        for item in items:
            show(f"{day}: {item.kind} of {mask_key(item.key)}: {mask(item.reason)}")
    reasons = Counter[str]()
    for one in counted:
        reasons[mask(one.reason)] += one.number
    if reasons.total() > limit:
        show(f"Not listed: {reasons.total() - limit:,} more. Choose a day or a reason, or give a --limit.")
    total = f"{reasons.total():,} refused: " + ", ".join(f"{count:,} for {reason}" for reason, count in reasons.most_common())
    show(f"{total}." if reasons else "Nothing is refused.")
