"""`make demo`: three days of a generated product, from the local PostHog to the local Customer.io, through Dagster.

Only identified people are sent, with what they did anonymously in the week before (R5, R16).
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from cio_pipeline.cli.processes import end, local
from cio_pipeline.cli.ui import interruptible
from cio_pipeline.sandbox.processes import Sandbox, empty_folder, sandbox, sandbox_folder
from cio_pipeline.tables.tables import Tables

FIRST, LAST = date(2026, 3, 1), date(2026, 3, 3)
DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")


def demo(folder: Path | None = None) -> int:
    """Runs the days, runs them again, adds ten late events, and prints the content of Customer.io. Returns the exit status.

    Everything is written to the folder, which is emptied first. Raises `SettingsError` if that fails, and `KeyboardInterrupt`
    on Ctrl-C or SIGTERM, once the services have ended.
    """
    interruptible()
    folder = folder or sandbox_folder("demo")
    empty_folder(folder)
    with sandbox(FIRST, days=len(DAYS)) as services:
        environment = services.environment(folder, FIRST, CIO_ANONYMOUS_USERS="identified", CIO_STITCH_ANONYMOUS_DAYS="7")
        print(
            f"A local PostHog ({services.posthog}) and a local Customer.io ({services.customerio}) are running. Three days of"
        )
        print("events go from one to the other, and nothing goes anywhere else: neither .env nor your settings are read.")
        print("Anonymous visits are held back, and sent once their person is identified:\n", flush=True)
        if not _run(folder, environment):
            return 1
        print("\nThe same days again, which sends nothing:\n")
        if not _run(folder, environment):
            return 1
        _add_late_events(services)
        print("\nTen events of 2 March arrived late; that day again:\n")
        if not _run(folder, environment, DAYS[1], DAYS[1]):
            return 1
        _print_tables(folder)
        _print_people(services, folder)
    return 0


def _run(folder: Path, environment: dict[str, str], first: str = DAYS[0], last: str = DAYS[-1]) -> bool:
    """Runs the days in a session of their own, so that Ctrl-C reaches only this process."""
    command = [sys.executable, "-m", "cio_pipeline", "run", "--from", first, "--to", last]
    child = subprocess.Popen(command, cwd=folder, env=environment, text=True, start_new_session=True)  # noqa: S603
    try:
        return child.wait() == 0
    finally:
        end(child)


def _add_late_events(services: Sandbox) -> None:
    """Adds an event for each of the ten people who were identified first."""
    identified = [
        (event["timestamp"], person["identifiers"]["id"])
        for person in _people(services)
        for event in person["events"]
        if event["name"] == "$identify"
    ]
    ids = [distinct_id for _, distinct_id in sorted(identified)[:10]]
    late = [
        {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, f"late-{number}")),
            "event": "order placed",
            "distinct_id": distinct_id,
            "timestamp": f"2026-03-02T18:00:{number:02d}.000000Z",
            "created_at": "2026-03-04T09:00:00.000000Z",
            "properties": {"total": 10 + number, "$set": {"plan": "pro"}},
        }
        for number, distinct_id in enumerate(ids)
    ]
    local().post(f"{services.posthog}/sandbox/events", json=late, timeout=30).raise_for_status()


def _people(services: Sandbox) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = local().get(f"{services.customerio}/sandbox/people", timeout=30).json()
    return found


def _print_tables(folder: Path) -> None:
    """Prints the number of rows in each day's tables, and of events that were anonymous when they happened (R16)."""
    tables = Tables(str(folder))
    print("\nday          extracted   customers   events to send   stitched   rejects")
    for day in DAYS:
        rows = {name: tables.version(name, day).rows for name in ("posthog_events", "customers", "events", "rejects")}
        raw = pd.concat(
            [events[["uuid", "distinct_id"]] for any_day in DAYS for events in tables.read("posthog_events", any_day)]
        )
        sent = pd.concat([events[["uuid", "key"]] for events in tables.read("events", day)]).merge(raw, on="uuid")
        stitched = int((sent["key"] != "id:" + sent["distinct_id"]).sum())
        print(
            f"{day}   {rows['posthog_events']:>9,}   {rows['customers']:>9,}   {rows['events']:>14,}   {stitched:>8,}"
            f"   {rows['rejects']:>7,}"
        )


def _print_people(services: Sandbox, folder: Path) -> None:
    people = _people(services)
    requests = local().get(f"{services.customerio}/sandbox/requests", timeout=30).json()["requests"]
    events = sum(len(person["events"]) for person in people)
    print(f"\nCustomer.io now holds {len(people):,} people and {events:,} events, from {requests} requests. Three of them:\n")
    for person in sorted(people, key=lambda person: -len(person["attributes"]))[:3]:
        shown = {name: person["attributes"].get(name) for name in ("email", "name", "plan", "created_at")}
        print(f"  {person['identifiers'].get('id')}: {shown}, {len(person['events'])} events")
    print(f"\nThe tables are in {folder}. The command `dev` opens the Dagster UI on such a sandbox, and its People page.")
