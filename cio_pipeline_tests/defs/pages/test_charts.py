"""The pictures of a receipt are SVG that a browser takes, short enough to be shown, and hide no single event."""

from __future__ import annotations

import re
from urllib.parse import unquote
from xml.etree import ElementTree

from cio_pipeline.defs.pages.charts import COLOURS, DAYS_SHOWN, MAX_MARKDOWN, DayEvents, day_chart, last_days_chart

DAYS = [f"2026-03-{day:02d}" for day in range(1, DAYS_SHOWN + 1)]


def paths(markdown: str) -> dict[str, str]:
    """What is drawn last in each colour."""
    [source] = re.findall(r"^!\[.*\]\(<data:image/svg\+xml,(.*)>\)", markdown)
    root = ElementTree.fromstring(unquote(source))
    return {one.attrib["stroke"]: one.attrib["d"] for one in root if one.tag.endswith("path")}


def test_the_pictures_of_the_largest_days_are_not_folded() -> None:
    days = [DayEvents(day, 999_999_999, 888_888_888, 777_777_777, 666_666_666) for day in DAYS]
    assert max(len(day_chart(days[-1])), len(last_days_chart(days))) <= MAX_MARKDOWN


def test_one_refused_event_of_a_million_is_seen_and_what_there_is_none_of_is_not() -> None:
    days = [DayEvents(DAYS[0]), DayEvents(DAYS[1], 1_000_000, refused=1)]
    assert paths(last_days_chart(days)) == {COLOURS["refused"]: "M38 99v-93", COLOURS["sent"]: "M38 99v-91"}


def test_a_days_bar_has_its_parts_side_by_side_with_their_numbers() -> None:
    picture = unquote(day_chart(DayEvents(DAYS[0], 3000, 0, 1000, 0)))
    assert "d='M0 8H255'" in picture
    assert "d='M255 8H340'" in picture
    assert re.findall(r">([\d,]+ [a-z ]+)<", picture) == ["3,000 sent", "0 not sent", "1,000 filtered", "0 refused"]


def test_days_without_any_event_are_pictures_too() -> None:
    days = [DayEvents(day) for day in DAYS]
    assert paths(last_days_chart(days)) == {}
    assert "0 sent" in day_chart(days[0])
