"""A day of made-up events, as the files of a PostHog batch export. The events are always the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from cio_pipeline.sandbox.posthog.exports import SCHEMA

SEED = 12
HOURS = 24
EVENTS_PER_PERSON = 10
NAMES = ("$pageview", "$pageview", "$pageview", "$autocapture", "order placed", "item added", "search made", "$identify")
PLANS = ("free", "pro", "team", "Größe M")
WORDS = ("checkout", "Zürich", "naïve", "東京", "Предложение", "newsletter", "☕ & tea", "discount", "lorem ipsum dolor")


def write_day(folder: Path, start: datetime, events: int, size: int) -> None:
    """Writes a day's events as one Parquet file per hour. Each person has about ten events, a quarter of them with `$set`.

    size: bytes of the JSON of an event's properties, about.
    """
    generator = random.Random(SEED)
    text = _filler(generator)
    for hour in range(HOURS):
        begin = start + timedelta(hours=hour)
        count = events * (hour + 1) // HOURS - events * hour // HOURS
        rows = list(_rows(generator, text, begin, count, max(1, events // EVENTS_PER_PERSON), size))
        name = f"{begin.isoformat()}-{(begin + timedelta(hours=1)).isoformat()}.parquet.zst"
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / name, compression="zstd", row_group_size=10_000)


def _rows(generator: random.Random, text: str, begin: datetime, count: int, people: int, size: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        person = generator.randrange(people)
        at = begin + timedelta(hours=1) * number / count
        bits = f"{generator.getrandbits(128):032x}"
        email = f"user{person}@example.com"
        properties = _properties(generator, person, number)
        if generator.random() < 0.25:
            properties["$set"] = {
                "email": email,
                "name": f"Zoë Müller {person}",
                "plan": generator.choice(PLANS),
                "visits": generator.randrange(1_000),
            }
        missing = max(0, size - len(orjson.dumps(properties)) - len('"$elements_chain":"",'))
        begins = generator.randrange(len(text) // 2)
        properties["$elements_chain"] = text[begins : begins + missing].encode()[:missing].decode(errors="ignore")
        yield {
            "uuid": f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}",
            "event": generator.choice(NAMES),
            "distinct_id": f"user-{person:07d}",
            "properties": orjson.dumps(properties).decode(),
            "person_properties": orjson.dumps({"email": email, "plan": "free"}).decode(),
            "timestamp": at,
            "created_at": at,
            "_inserted_at": at,
        }


def _properties(generator: random.Random, person: int, number: int) -> dict[str, Any]:
    return {
        "$current_url": f"https://shop.example.com/produkte/{number % 997}?ref=größe",
        "$browser": "Firefox",
        "$lib": "web",
        "$device_id": f"{person:032x}",
        "price": round(generator.random() * 500, 2),
        "in stock": number % 3 > 0,
        "cart": {"items": [{"sku": f"A-{number % 89}", "count": number % 4}, {"sku": "東京-7", "count": 1}], "voucher": None},
    }


def _filler(generator: random.Random) -> str:
    """A text with words in several scripts. Each event gets a different part of it."""
    return " ".join(generator.choice(WORDS) for _ in range(10_000))
