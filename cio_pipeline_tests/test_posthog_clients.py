"""PostHog's own clients, used as in an application, and the people that Customer.io then has.

The clients send to the sandbox's PostHog, whose events are extracted, learned, derived and delivered to the sandbox's
Customer.io.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from posthog import Posthog

from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.defs.services import new_event_source
from cio_pipeline.posthog.source import EVENT_SCHEMA
from cio_pipeline.rules.options import Options
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.customerio.people import Person
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.settings.load import load_settings
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.days import Days
from cio_pipeline_tests.deliveries import deliver, shards_of

NODE_APP = """
const { PostHog } = require('posthog-node')
const client = new PostHog('phc_sandbox', { host: process.argv[2] })
client.capture({ distinctId: 'u2', event: 'signed up', properties: { $set: { plan: 'pro', unsubscribed: false } } })
client.capture({ event: 'server started' })
client.capture({ distinctId: String(undefined), event: 'order', properties: { $set: { email: 'alice@example.com' } } })
client.capture({ distinctId: String({}), event: 'order' })
client.identify({ distinctId: 'u2', properties: { email: 'u2@example.com' } })
client.groupIdentify({ groupType: 'company', groupKey: 'acme', properties: { seats: 3 } })
client.alias({ distinctId: 'u2', alias: 'visitor-2' })
client.shutdown()
"""


SETTINGS = {"POSTHOG_PROJECT_ID": "1", "POSTHOG_PERSONAL_API_KEY": "phx_sandbox", "CIO_ATTRIBUTES_FROM": "set"}
SETTINGS |= {"CUSTOMERIO_SITE_ID": "sandbox", "CUSTOMERIO_API_KEY": "sandbox-key"}


def use_python(url: str) -> None:
    """An application that uses posthog-python, without a distinct_id if that is optional."""
    client = Posthog("phc_sandbox", host=url, disable_geoip=True)
    client.capture("signed up", distinct_id="u1", properties={"amount": 1, "$set": {"email": "u1@example.com"}})
    client.capture("job ran")
    client.capture("job ran", properties={"$set": {"unsubscribed": False}})
    client.capture("order", distinct_id="None", properties={"$set": {"email": "alice@example.com"}})
    client.set(distinct_id="u1", properties={"plan": "pro", "unsubscribed": False})
    client.set_once(distinct_id="u1", properties={"first": "today"})
    client.group_identify("company", "acme", {"seats": 3})
    client.alias("visitor-1", "u1")
    client.flush()
    client.shutdown()


def use_node(url: str, folder: Path) -> None:
    """An application that uses posthog-node, which npm installs first. Skips the test if that fails."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("posthog-node was not run: there is no node with npm here")
    install = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0", "--fetch-timeout=30000", "posthog-node@5"]
    try:
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("posthog-node was not run: npm did not install it within two minutes")
    if done.returncode:
        pytest.skip("posthog-node was not run: npm cannot reach its registry, or has no posthog-node@5")
    (folder / "app.js").write_text(NODE_APP)
    subprocess.run(["node", "app.js", url], cwd=folder, check=True, timeout=60, capture_output=True)


def delivered(server: posthog.PostHog, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Person]:
    """The people in Customer.io after runs of yesterday and today, by id."""
    for name, value in {**SETTINGS, "POSTHOG_HOST": server.url}.items():
        monkeypatch.setenv(name, value)
    source, days = new_event_source(load_settings()), Days(str(folder / "data"), Options(**options))
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    with customerio.serve() as workspace:
        client = TrackClient(workspace.url, "sandbox", "sandbox-key", requests_per_second=1000)
        for start in (today - timedelta(days=1), today):
            frames = list(source.events(start, start + timedelta(days=1)).frames)
            day = f"{start:%Y-%m-%d}"
            days.extract(day, pd.concat([EVENT_SCHEMA.empty_table().to_pandas(), *frames]))
            days.learn(day)
            days.derive(day)
            shards = shards_of(days.tables, day)
            deliver(day, shards, ledger, client)
        return {person.identifiers["id"]: person for person in workspace.workspace.people()}


@pytest.fixture
def server() -> Iterator[posthog.PostHog]:
    with posthog.serve() as running:
        yield running


def test_posthog_python_creates_no_customer_who_is_nobody(
    server: posthog.PostHog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_python(server.url)
    people = delivered(server, tmp_path, monkeypatch, anonymous_users="profiles")
    assert list(people) == ["u1"]
    assert people["u1"].values == {"email": "u1@example.com", "plan": "pro", "identifier": "u1"}
    assert [activity.name for activity in people["u1"].events] == ["signed up", "$set", "$set_once"]


def test_posthog_node_creates_no_customer_who_is_nobody(
    server: posthog.PostHog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_node(server.url, tmp_path)
    people = delivered(server, tmp_path, monkeypatch, anonymous_users="profiles")
    assert list(people) == ["u2"]
    assert people["u2"].values == {"email": "u2@example.com", "plan": "pro", "identifier": "u2"}
    assert [activity.name for activity in people["u2"].events] == ["signed up", "$identify"]


def test_with_all_only_personless_events_create_customers_with_generated_ids(
    server: posthog.PostHog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_python(server.url)
    people = delivered(server, tmp_path, monkeypatch)
    random = [person for distinct_id, person in people.items() if distinct_id != "u1"]
    assert [[activity.name for activity in person.events] for person in random] == [["job ran"]] * 2
    assert all(list(person.values) == ["identifier"] for person in random)
