"""`make screenshots`: the picture of a receipt in the README, as Dagster's UI shows it after `make demo`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time

import requests

from cio_pipeline.cli.ui import free_port
from cio_pipeline.sandbox.demo import DAYS, demo
from cio_pipeline.sandbox.processes import bare_environment, end, local, sandbox_folder
from cio_pipeline.settings.places import DAGSTER_YAML, PROJECT, WORKSPACE_YAML

DAY_CHART = PROJECT / "docs" / "img" / "receipt.png"
SHOWN = DAY_CHART.with_suffix(".txt")
"""The entries of the receipt in the picture: a test compares them with a receipt's, and so tells when the picture is old."""

RECEIPT = """{ assetNodeOrError(assetKey: {path: ["cio", "customerio_delivery"]}) {
  ... on AssetNode { assetMaterializations(limit: 1) { metadataEntries { label } } } } }"""
START_SECONDS = 180
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def screenshots() -> int:
    """Runs the demo and takes the picture of its late events' receipt in Dagster's UI with Chromium; gives the exit status."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.stderr.write("Chromium is needed to take the pictures.\n")
        return 1
    if demo():
        return 1
    folder = sandbox_folder("demo")
    home, address = folder / "dagster", f"http://127.0.0.1:{free_port()}"
    shutil.copy(DAGSTER_YAML, home)
    settings = {
        "CIO_SANDBOX": "Yes",
        "CIO_START_DATE": DAYS[0],
        "DAGSTER_HOME": str(home),
    }
    command = [sys.executable, "-m", "dagster_webserver", "-w", str(WORKSPACE_YAML), "-h", "127.0.0.1"]
    webserver = subprocess.Popen(  # noqa: S603
        [*command, "-p", address.rpartition(":")[2]],
        env=bare_environment(folder) | settings,
        cwd=home,
        text=True,
        start_new_session=True,
    )
    try:
        _wait_for(address)
        _take(browser, f"{address}/assets/cio/customerio_delivery?view=partitions&partition={DAYS[1]}")
        SHOWN.write_text("".join(f"{name}\n" for name in _entries(address)))
    finally:
        end(webserver)
    return 0


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            local().get(f"{address}/server_info", timeout=5).raise_for_status()
        except requests.RequestException:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError("Dagster's webserver did not start.")


def _entries(address: str) -> list[str]:
    """The names of the entries of the last receipt."""
    answer = local().post(f"{address}/graphql", json={"query": RECEIPT}, timeout=60).json()
    [receipt] = answer["data"]["assetNodeOrError"]["assetMaterializations"]
    return [entry["label"] for entry in receipt["metadataEntries"]]


def _take(browser: str, url: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
        view = (f"--user-data-dir={profile}", "--window-size=1400,1400", "--virtual-time-budget=20000")
        subprocess.run(  # noqa: S603
            [browser, *options, *view, f"--screenshot={DAY_CHART}", url], check=True, timeout=180, capture_output=True
        )
    print(f"{DAY_CHART} is new.")


if __name__ == "__main__":
    sys.exit(screenshots())
