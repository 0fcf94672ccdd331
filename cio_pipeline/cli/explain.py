"""Prints what happened to a person, and why. Unlike any other output, it shows personal data unmasked."""

from __future__ import annotations

import orjson

from cio_pipeline.cli.terminal import show
from cio_pipeline.customerio.suppression_list import read_suppressed
from cio_pipeline.defs.jobs.explain import as_rows, masked_name
from cio_pipeline.defs.pages.tables import lines
from cio_pipeline.defs.partitions import days_asked_for, days_text
from cio_pipeline.explanation import explain
from cio_pipeline.person_records import look_up, person_names
from cio_pipeline.settings.settings import Settings
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.tables.tables import Tables


def explain_person(settings: Settings, who: str, first: str, last: str) -> None:
    """Prints each event and attribute of the days, and what became of it. Raises `DaysError` if they are not partitions."""
    days = days_asked_for(first, last)
    database = (settings.ledger_url, settings.ledger_lock_seconds)
    identities, ledger = Identities(*database), Ledger(*database)
    try:
        names = person_names(who, identities)
        listed = read_suppressed(settings.suppressed_file).with_linked(identities.linked, identities.all_names())
        tables = Tables(settings.data_dir)
        explanation = explain(names, look_up(names, days, tables, identities, ledger, settings.options, listed))
    finally:
        ledger.close()
    show(f"{who}, {days_text(days)}: {', '.join(explanation.names)}")
    rows = as_rows(explanation)
    rows["attributes"] = [{**row, "value": orjson.dumps(row["value"]).decode()} for row in rows["attributes"]]
    titles = {"events": "Events", "attributes": "Attributes", "left out": "Left out or changed of what was sent"}
    for name, title in titles.items():
        if rows[name]:
            show(f"{title}:")
        for line in lines(rows[name]):
            show(line, indent="  ")
    if not explanation.events:
        show("The tables of these days have no event of theirs: it was not extracted, or PostHog has none.")


def print_masked_name(who: str) -> None:
    """Prints the names of a person that the job `explain_person` takes."""
    masked, hashed = masked_name(who)
    show(f"{masked}  if that is enough")
    show(f"{hashed}  if several people look like that")
