"""Customer.io's limits (Track API reference and its OpenAPI description), each in one place. Bytes are bytes of UTF-8."""

from __future__ import annotations

ID_BYTES = 150
"""A person's id."""

EVENT_NAME_BYTES = 100

ATTRIBUTE_NAME_BYTES = 150
ATTRIBUTE_VALUE_BYTES = 1000
ATTRIBUTES = 300
"""How many a person may have."""

ITEM_BYTES = 32_000
"""One item of a v2 batch: an upsert or an event."""

DATA_BYTES = 100_000
"""An event's data by the v1 call."""

BATCH_BYTES = 475_000
"""A batch must be smaller than 500 KB; Customer.io's own client sends it at 475,000 bytes."""

CAMPAIGN_SECONDS = 72 * 3600
"""Events younger than this start campaigns."""
