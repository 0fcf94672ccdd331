"""The wheel, installed with pip into an environment that has nothing else, in an empty folder: Dagster's UI comes up, and the
main job, launched by GraphQL, delivers a day. It installs from the package registry: `make test-deploy`.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import requests

from cio_pipeline.cli.processes import end
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.places import PROJECT
from cio_pipeline_tests.deploy.test_compose_runs import START_SECONDS, ask, until
from cio_pipeline_tests.postgres import free_port

pytestmark = pytest.mark.deploy

DAY = "2026-03-01"
LOADED = "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }"
LAUNCH = """mutation ($run: ExecutionParams!) { launchRun(executionParams: $run) {
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def test_dagster_dev_of_the_installed_wheel_delivers_a_day(tmp_path: Path) -> None:
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    wheels, environment, folder = tmp_path / "wheels", tmp_path / "environment", tmp_path / "empty"
    subprocess.run([sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", wheels, PROJECT], check=True)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([environment / "bin" / "python", *pip, "install", *wheels.iterdir()], check=True)
    folder.mkdir()
    about = {"distinct_id": "jane", "timestamp": f"{DAY}T10:00:00Z", "properties": {}}
    event = {"uuid": "00000000-0000-4000-8000-000000000001", "event": "paid", **about}
    with posthog.serve([event]) as source, customerio.serve() as workspace:
        settings = Sandbox(source.url, workspace.url).environment(folder, date.fromisoformat(DAY))
        del settings["PYTHONPATH"], settings["CIO_DATA_DIR"]
        settings["PATH"] = f"{environment / 'bin'}:/usr/bin:/bin"
        port = free_port()
        command = [str(environment / "bin" / "dagster"), "dev", "-m", "cio_pipeline.definitions", "-p", str(port)]
        with (tmp_path / "dagster.log").open("w") as log:
            dagster = subprocess.Popen(
                command, env=settings, cwd=folder, stdout=log, stderr=log, text=True, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{port}"
            [location] = until(lambda: ask(url, LOADED)["workspaceOrError"]["locationEntries"], START_SECONDS, tmp_path)
            assert location["locationOrLoadError"]["__typename"] == "RepositoryLocation"
            assert '<div id="root">' in requests.get(url, timeout=60).text
            selector = {
                "repositoryLocationName": location["name"],
                "repositoryName": "__repository__",
                "jobName": "customerio_sync",
            }
            tags = [{"key": "dagster/partition", "value": DAY}]
            run = ask(url, LAUNCH, run={"selector": selector, "executionMetadata": {"tags": tags}})["launchRun"]["run"]["runId"]

            def ended() -> Any:
                status = ask(url, STATUS, id=run)["runOrError"]["status"]
                return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

            assert until(ended, START_SECONDS, tmp_path) == "SUCCESS"
        finally:
            end(dagster)
        assert workspace.totals()["events"] == 1
    assert (folder / "data" / "ledger.db").exists(), "a relative path counts from the working directory"
