"""The services of compose.yaml as processes of this machine: their commands, environment and secrets, dagster.yaml, and, as
root on Linux, a root file system that is read-only. A backfill launched by GraphQL delivers its days, oldest first.

The instance is that of dagster.yaml with the limit of existing-dagster.yaml; test_ui.py has the former's. It takes minutes:
`make test-deploy`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa
import yaml

from cio_pipeline.cli.processes import end
from cio_pipeline.defs.partitions import RANGE_START
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline_tests.deploy.files import DEPLOY, image_command, image_environment, read
from cio_pipeline_tests.postgres import PASSWORD, free_port, server

pytestmark = pytest.mark.deploy

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
ASSETS = ("posthog_events", "identities", "identity_history", "customers", "events", "rejects", "customerio_delivery")
TAG = {"key": "cio_pipeline/backfill", "value": "yes"}
START_SECONDS, RUN_SECONDS = 300, 900
READ_ONLY = """
mount --bind "$1" "$1" && mount --bind "$2" "$2" && mount -o remount,ro,bind / || exit 1
shift 2; (touch /written) 2>/dev/null && exit 1
exec "$@"
"""
LAUNCH = """mutation ($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
FOUND = """query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status runs(limit: 100) { status startTime endTime tags { key value } } } } }"""
LOCATIONS = "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }"


@dataclass
class Compose:
    """The services of compose.yaml on this machine; `hosts` says what stands here for the names and ports in it."""

    folder: Path
    hosts: dict[str, str]
    settings: dict[str, str]

    def here(self, text: str) -> str:
        for name, value in self.hosts.items():
            text = text.replace(name, value)
        return text

    def environment(self, name: str) -> dict[str, str]:
        service = read("compose.yaml")["services"][name]
        given = {key: self.here(value) for key, value in {**image_environment(), **service["environment"]}.items()}
        secrets = self.folder / "secrets" / name
        secrets.mkdir(parents=True, exist_ok=True)
        for secret in service["secrets"]:
            shutil.copy(self.folder / "secret" / secret, secrets)
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        settings = self.settings if "env_file" in service else {}
        return {**kept, "HOME": str(self.folder / "data"), "SECRETS": str(secrets), **given, **settings}

    def said(self, name: str, *command: str) -> str:
        """What a command prints in the service's container. Raises where it fails."""
        entrypoint = ["sh", str(DEPLOY / "entrypoint.sh"), *map(self.here, command)]
        folder = self.folder / "dagster"
        return subprocess.run(
            entrypoint, env=self.environment(name), cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    def is_healthy(self, name: str) -> bool:
        """What the service's health check finds."""
        [_, *test] = read("compose.yaml")["services"][name]["healthcheck"]["test"]
        try:
            self.said(name, *(word for word in test if word != "entrypoint"))
        except subprocess.CalledProcessError:
            return False
        return True

    def command(self, name: str) -> list[str]:
        command = [self.here(word) for word in read("compose.yaml")["services"][name].get("command", image_command())]
        command = ["sh", str(DEPLOY / "entrypoint.sh"), *command]
        if os.geteuid() or sys.platform != "linux":
            return command
        writable = [str(self.folder / name) for name in ("data", "scratch")]
        return ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", *writable, *command]

    @contextmanager
    def service(self, name: str) -> Iterator[subprocess.Popen[str]]:
        with (self.folder / f"{name}.log").open("w") as log:
            child = subprocess.Popen(
                self.command(name),
                env=self.environment(name),
                cwd=self.folder / "dagster",
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        try:
            yield child
        finally:
            end(child)


def ask(url: str, query: str, **variables: Any) -> Any:
    answer = requests.post(f"{url}/graphql", json={"query": query, "variables": variables}, timeout=60).json()
    assert "errors" not in answer, answer["errors"]
    return answer["data"]


def until(done: Any, seconds: int, folder: Path) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := done():
                return found
        except requests.ConnectionError:
            pass
        time.sleep(1)
    logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in folder.glob("*.log"))
    raise AssertionError(f"not done after {seconds} s: {logs}")


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Compose]:
    """PostgreSQL with both databases, a PostHog with three days of events, a Customer.io, and what is in the volumes."""
    about = {"distinct_id": "jane", "properties": {"$set": {"plan": "pro"}}}
    events = [
        {"uuid": f"00000000-0000-4000-8000-{number:012d}", "event": "paid", "timestamp": f"{day}T10:00:00Z", **about}
        for number, day in enumerate(DAYS)
    ]
    for name in ("data", "scratch", "secret", "dagster"):
        (tmp_path / name).mkdir()
    for name, secret in (
        ("PGPASSWORD", PASSWORD),
        ("CUSTOMERIO_API_KEY", "sandbox-key"),
        ("POSTHOG_PERSONAL_API_KEY", "phx_sandbox"),
    ):
        (tmp_path / "secret" / name).write_text(f"{secret}\n")
    with server() as database, posthog.serve(events) as source, customerio.serve() as workspace:
        engine = sa.create_engine(sa.make_url(database.url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE dagster")
            connection.exec_driver_sql(read("compose.yaml")["configs"]["databases"]["content"])
        engine.dispose()
        port, ui = free_port(), free_port()
        postgres = database.url.rpartition("@")[2].partition("/")[0]
        hosts = {"cio_pipeline@postgres": f"cio@{postgres}", "0.0.0.0": "127.0.0.1", "4000": str(port), "3000": str(ui)}
        hosts |= {"/opt/dagster": str(tmp_path / "dagster"), "/data": str(tmp_path / "data")}
        hosts |= {"/scratch": str(tmp_path / "scratch"), "code": "127.0.0.1"}
        made = Sandbox(source.url, workspace.url).environment(tmp_path, date(2026, 3, 1), CIO_DAYS_PER_RUN="1")
        kept = ("PYTHONPATH", "CIO_SANDBOX", "POSTHOG_HOST", "POSTHOG_PROJECT_ID", "CUSTOMERIO_TRACKING_ENDPOINT")
        settings = {name: made[name] for name in (*kept, "CUSTOMERIO_SITE_ID", "CIO_START_DATE", "CIO_DAYS_PER_RUN")}
        found = Compose(tmp_path, hosts, settings)
        (tmp_path / "dagster" / "workspace.yaml").write_text((DEPLOY / "workspace.yaml").read_text().replace("4000", str(port)))
        instance = read("dagster.yaml") | {"concurrency": read("existing-dagster.yaml")["concurrency"]}
        (tmp_path / "dagster" / "dagster.yaml").write_text(yaml.safe_dump(instance))
        yield found


def test_a_backfill_on_the_services_of_compose_delivers_its_days_one_after_another(compose: Compose) -> None:
    with ExitStack() as running:
        migrate = running.enter_context(compose.service("migrate"))
        assert migrate.wait(START_SECONDS) == 0, (compose.folder / "migrate.log").read_text()
        for name in ("code", "webserver", "daemon"):
            running.enter_context(compose.service(name))
        url = f"http://127.0.0.1:{compose.hosts['3000']}"
        loaded = {
            "workspaceOrError": {
                "locationEntries": [{"name": "cio_pipeline", "locationOrLoadError": {"__typename": "RepositoryLocation"}}]
            }
        }
        until(lambda: ask(url, LOCATIONS) == loaded, START_SECONDS, compose.folder)
        health = ["dagster", "api", "grpc-health-check", "-p", compose.hosts["4000"]]
        assert subprocess.run([sys.executable, "-m", *health], check=False).returncode == 0
        for name in ("webserver", "daemon"):
            until(partial(compose.is_healthy, name), START_SECONDS, compose.folder)
        params = {"assetSelection": [{"path": ["cio", asset]} for asset in ASSETS], "partitionNames": list(DAYS), "tags": [TAG]}
        launched = ask(url, LAUNCH, backfill=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched

        def finished() -> Any:
            found = ask(url, FOUND, id=launched["backfillId"])["partitionBackfillOrError"]
            return found if found["status"].startswith(("COMPLETED", "FAILED", "CANCELED")) else None

        backfill = until(finished, RUN_SECONDS, compose.folder)
        assert "cio_pipeline_newest_day_events 1.0" in compose.said("code", "python", "-m", "cio_pipeline", "metrics")
        assert compose.said("code", "python", "-m", "cio_pipeline", "refusals") == "Nothing is refused.\n"
    assert backfill["status"] == "COMPLETED_SUCCESS"
    runs = sorted(backfill["runs"], key=lambda run: run["startTime"])
    assert not [run for before, run in pairwise(runs) if run["startTime"] < before["endTime"]]
    started = [tag["value"] for run in runs for tag in run["tags"] if tag["key"] == RANGE_START]
    assert started == [*DAYS, *DAYS]
