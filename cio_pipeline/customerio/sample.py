"""A look at what is sent that shows nobody's data."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np

from cio_pipeline.customerio.batches import Item
from cio_pipeline.customerio.plan import Plan
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask

SHOWN_OF_ID = 3
SAMPLE_ITEMS = 5
SAMPLE_NAMES = 12


def mask_key(key: str) -> str:
    """A customer's key with its email masked, or its id cut."""
    kind, _, value = key.partition(":")
    if "@" in value:
        return f"{kind} {mask(value)}"
    return f"{kind} {value[: min(SHOWN_OF_ID, len(value) // 2)]}***"


def sample(made: Plan) -> list[str]:
    """A line for some of the customers and some of the events: whose they are, and the names of what they hold."""
    events = made.events.take(np.arange(min(len(made.events), SAMPLE_ITEMS)))
    return [_line(item) for item in made.upserts[:SAMPLE_ITEMS] + events.items()]


def _line(item: Item) -> str:
    operation = read_object(item.operation.decode())
    at = datetime.fromtimestamp(operation["timestamp"], timezone.utc)
    names = list(operation.get("attributes", operation.get("data", {})))
    shown = ", ".join(mask(name) for name in names[:SAMPLE_NAMES]) + (", …" if len(names) > SAMPLE_NAMES else "")
    what = "upsert" if item.is_customer else mask(operation["name"])
    return f"{mask_key(item.key)}: {what} at {at:%Y-%m-%d %H:%M:%S} with {shown or 'no properties'}"
