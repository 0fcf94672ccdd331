"""The HTML of the Customer.io sandbox: the people of the workspace, and one person.

All text from the workspace may be hostile, so it passes through `escape`.
"""

from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote

import orjson

from cio_pipeline.sandbox.customerio.layout import in_layout
from cio_pipeline.sandbox.customerio.people import FAILURE, Activity, Attribute, Person

ACTIVITIES_SHOWN = 200
CHIPS_SHOWN = 2
CHIPS_FIRST = ("plan", "tier", "subscription", "role", "company", "country")
NOT_A_CHIP = ("identifier", "email", "name", "first_name", "last_name", "created_at")


def people_page(people: list[Person], totals: dict[str, int], *, query: str, page: int, pages: int) -> str:
    """Returns the front page: one page of a search for people, the last changed first."""
    if people:
        columns = (
            '<th class="wide">Person</th><th class="wide">Email</th><th>Name</th><th class="wide">Attributes</th>'
            '<th class="count">Events</th><th class="when">Last activity (UTC)</th>'
        )
        rows = "\n".join(_person_row(person) for person in people)
        listing = f'<table class="people"><thead><tr>{columns}</tr></thead><tbody>\n{rows}\n</tbody></table>'
    elif totals["people"]:
        listing = _empty(f"Nobody here matches “{escape(query)}”", "The search looks at ids, emails and names.")
    else:
        listing = _empty(
            "No people yet", "Materialize days in the Dagster UI that <code>make dev</code> has opened, and watch them arrive."
        )
    field = 'type="search" name="q" placeholder="Search people" aria-label="Search people" autocomplete="off"'
    search = f'<form><input {field} value="{escape(query)}"></form>'
    body = f"""<section class="card"><div class="bar"><h1>People</h1>{search}</div>
<div id="people" data-live>{listing}{_pager(query, page, pages)}</div></section>"""
    return in_layout("People", totals, body)


def person_page(person: Person, totals: dict[str, int]) -> str:
    """Returns the page of a person: identifiers, attributes, and the activity log, newest first."""
    name = _identifier(person)
    identifiers = " · ".join(f"{kind} {escape(value)}" for kind, value in sorted(person.identifiers.items(), reverse=True))
    body = f"""<div class="crumb"><a href="/">People</a><h1 class="title">{escape(name)}</h1>
<div class="soft" id="who" data-live>{identifiers}</div></div>
<div class="split"><section class="card"><div class="bar"><h2>Attributes</h2></div>
<div id="attributes" data-live>{_attributes(person)}</div></section>
<section class="card"><div class="bar"><h2>Activity</h2></div>
<div id="activity" data-live>{_activities(person)}</div></section></div>"""
    return in_layout(name, totals, body)


def missing_page(text: str, totals: dict[str, int]) -> str:
    """Returns the page for a person or a page that does not exist."""
    nothing = _empty(f"Nothing here for “{escape(text)}”", '<a href="/">All people</a>')
    return in_layout("Not found", totals, f'<section class="card">{nothing}</section>')


def _empty(title: str, hint: str) -> str:
    return f'<div class="empty"><b>{title}</b><p>{hint}</p></div>'


def _person_row(person: Person) -> str:
    link = f'<a href="/people/cio_{quote(person.identifiers["cio_id"])}">{escape(_identifier(person))}</a>'
    email = escape(_text(person.values.get("email") or person.identifiers.get("email", "")))
    cells = f"<td>{link}</td><td>{email}</td><td>{escape(_name(person))}</td><td>{_chips(person)}</td>"
    return f'<tr>{cells}<td class="count">{len(person.events)}</td><td>{_time(_last_activity(person))}</td></tr>'


def _identifier(person: Person) -> str:
    names = person.identifiers
    return names.get("id") or names.get("email") or f"cio_{names['cio_id']}"


def _name(person: Person) -> str:
    values = person.values
    parts = [values["name"]] if "name" in values else [values.get("first_name"), values.get("last_name")]
    return " ".join(_text(part) for part in parts if part is not None)


def _chips(person: Person) -> str:
    values = person.values
    names = [name for name in CHIPS_FIRST if name in values]
    names += [name for name in values if name not in CHIPS_FIRST and name not in NOT_A_CHIP]
    chips = "".join(f'<span class="chip">{escape(name)}: {escape(_text(values[name]))}</span>' for name in names[:CHIPS_SHOWN])
    more = len(names) - CHIPS_SHOWN
    return chips + (f'<span class="chip plain">+{more}</span>' if more > 0 else "")


def _last_activity(person: Person) -> int | None:
    times = [activity.timestamp for activity in person.activities]
    return max(times + [stored.set_at for stored in person.attributes.values()], default=None)


def _attributes(person: Person) -> str:
    rows = "".join(
        _attribute_row(name, stored) for name, stored in sorted(person.attributes.items()) if stored.value is not None
    )
    if not rows:
        return '<div class="empty"><p>No attributes yet</p></div>'
    columns = '<th>Name</th><th>Value</th><th class="when">Set at (UTC)</th>'
    return f'<table class="attributes"><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>'


def _attribute_row(name: str, stored: Attribute) -> str:
    return f"<tr><td>{escape(name)}</td><td>{escape(_text(stored.value))}</td><td>{_time(stored.set_at)}</td></tr>"


def _activities(person: Person) -> str:
    newest = sorted(enumerate(person.activities), key=lambda numbered: (numbered[1].timestamp, numbered[0]), reverse=True)
    if not newest:
        return '<div class="empty"><p>No activity yet</p></div>'
    items = "\n".join(_activity(number, activity) for number, activity in newest[:ACTIVITIES_SHOWN])
    more = len(newest) - ACTIVITIES_SHOWN
    return f"<ol>{items}</ol>" + (f'<div class="pager soft">and {more:,} older</div>' if more > 0 else "")


def _activity(number: int, activity: Activity) -> str:
    chip = "chip bad" if activity.type == FAILURE else "chip"
    what = f'<span class="{chip}">{escape(activity.type)}</span><span class="what">{escape(activity.name)}</span>'
    line = what + _time(activity.timestamp)
    if not activity.data:
        return f'<li><div class="line">{line}</div></li>'
    data = escape(orjson.dumps(activity.data, option=orjson.OPT_INDENT_2).decode())
    return f'<li><details id="activity-{number}"><summary>{line}</summary><pre><code>{data}</code></pre></details></li>'


def _pager(query: str, page: int, pages: int) -> str:
    if pages < 2:
        return ""
    newer = f'<a href="/?q={quote(query)}&amp;page={page - 1}">Previous</a>' if page > 1 else "<span></span>"
    older = f'<a href="/?q={quote(query)}&amp;page={page + 1}">Next</a>' if page < pages else "<span></span>"
    return f'<div class="pager">{newer}<span class="soft">Page {page} of {pages}</span>{older}</div>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _time(seconds: int | None) -> str:
    if seconds is None:
        return ""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M:%S}</time>'
