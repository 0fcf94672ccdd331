"""A sample of what is sent, masked."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from cio_pipeline.customerio.batches import Item
from cio_pipeline.customerio.plan import Plan
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask, mask_key

SAMPLE_ITEMS = 5
SAMPLE_NAMES = 12


def sample(plan: Plan) -> list[str]:
    """Returns a line each for a few customers and events: whose it is, and the names of its attributes or properties."""
    events = plan.events.take(np.arange(min(len(plan.events), SAMPLE_ITEMS)))
    return [_line(item) for item in plan.upserts[:SAMPLE_ITEMS] + events.items()]


def _line(item: Item) -> str:
    operation = read_object(item.operation.decode())
    at = datetime.fromtimestamp(operation["timestamp"], UTC)
    names = list(operation.get("attributes", operation.get("data", {})))
    shown = ", ".join(mask(name) for name in names[:SAMPLE_NAMES]) + (", …" if len(names) > SAMPLE_NAMES else "")
    what = "upsert" if item.is_customer else mask(operation["name"])
    return f"{mask_key(item.key)}: {what} at {at:%Y-%m-%d %H:%M:%S} with {shown or 'no properties'}"
