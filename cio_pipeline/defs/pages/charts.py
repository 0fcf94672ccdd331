"""Small charts of what became of the events of a day, and of the days before it, for light and dark pages.

They are SVG in Markdown, and short, as Dagster's UI shows no more than `MAX_MARKDOWN` characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date
from itertools import accumulate, product

MAX_MARKDOWN = 999
"""Dagster's UI hides longer Markdown behind a link (dagster-webserver 1.13)."""

DAYS_SHOWN = 14
WIDTH = 340
"""In pixels. A wider picture would be cut off on the asset's page in a window of 1,400."""

HEIGHT = 99
STEP = 24
"""The height of the chart of several days, and the distance between its bars, in pixels."""

MIN_HEIGHT = 2
"""The minimum height, in pixels, of a part that has any event, so that a single refused one is visible."""

GREY = "#787878"
"""For texts: the contrast on white and on Dagster's dark page is at least 4.3 to 1."""

COLOURS = {"sent": "#2a6", "not_sent": "#da2", "filtered": "#89b", "refused": "#d45"}
LEGEND = {"sent": "sent", "not_sent": "not sent", "filtered": "filtered", "refused": "refused"}


@dataclass(frozen=True)
class DayEvents:
    """The numbers of a day's events that were sent, not sent (held back, beyond a limit or suppressed), filtered, and refused
    (by the rules or by Customer.io)."""

    day: str
    sent: int = 0
    not_sent: int = 0
    filtered: int = 0
    refused: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """The counts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "day"}

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(self.parts.values())


def day_chart(day: DayEvents) -> str:
    """Returns the day as one bar, with its numbers below, as Markdown."""
    edges = [round(WIDTH * count / (day.total or 1)) for count in accumulate(day.parts.values(), initial=0)]
    bar = "".join(
        f"<path stroke='{colour}' d='M{left} 8H{right}'/>"
        for colour, left, right in zip(COLOURS.values(), edges, edges[1:], strict=False)
        if left < right
    )
    legend = "".join(
        f"<path stroke='{COLOURS[name]}' d='M{left} {top}h10'/>"
        f"<text x='{left + 16}' y='{top + 4}'>{count:,} {LEGEND[name]}</text>"
        for (top, left), (name, count) in zip(product((34, 56), (0, WIDTH // 2)), day.parts.items(), strict=True)
    )
    return _markdown(day.day, 66, f" stroke-width='16' fill='{GREY}' font-family='sans-serif' font-size='13'", bar + legend)


def last_days_chart(days: Sequence[DayEvents]) -> str:
    """Returns each day as a bar, from oldest to newest, in the colours of `day_chart`, as Markdown."""
    most = max(day.total for day in days)
    bars = ""
    for name, colour in reversed(COLOURS.items()):  # the parts below cover those above
        tops = [_tops(day, most).get(name) for day in days]
        line = "".join(f"M{number * STEP + 14} {HEIGHT}v-{top}" for number, top in enumerate(tops) if top)
        bars += f"<path stroke='{colour}' d='{line}'/>" if line else ""
    first, last = (f"{date.fromisoformat(day.day):%-d %b}" for day in (days[0], days[-1]))
    caption = f"{first} to {last}; the highest bar is {most:,} event{'s' * (most != 1)}."
    return _markdown("Events by day", HEIGHT, " stroke-width='16'", bars) + f"\n\n{caption}"


def _tops(day: DayEvents, most: int) -> dict[str, int]:
    """Returns the height, in pixels, of the top of each part that has any event."""
    tops, below = dict[str, int](), 0
    for name, count in day.parts.items():
        if count:
            below = tops[name] = below + max(MIN_HEIGHT, round((HEIGHT - 4 * MIN_HEIGHT) * count / most))
    return tops


def _markdown(alt: str, height: int, attributes: str, body: str) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}'{attributes}>"
    escaped = f"{head}{body}</svg>".replace("#", "%23").replace("<", "%3C").replace(">", "%3E")
    return f"![{alt}](<data:image/svg+xml,{escaped}>)"
