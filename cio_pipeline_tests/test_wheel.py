"""The wheel without the checkout: from an empty folder it loads into Dagster and delivers a day."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import date
from pathlib import Path

import pytest

from cio_pipeline import __version__
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.places import PROJECT

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
"""What `pip wheel` calls, without pip and an environment that it would fill from the network."""

DIST_INFO = f"cio_pipeline-{__version__}.dist-info"

RUN = """
import os, sys
written = open(os.environ["WRITTEN"], "w", buffering=1)
def note(event, given):
    opened = event == "open" and isinstance(given[0], str) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if opened or event == "os.mkdir":
        print(os.path.abspath(given[0]), file=written)
sys.addaudithook(note)
from cio_pipeline import __file__ as found
from cio_pipeline.__main__ import main
print(found)
sys.argv = ["cio_pipeline", "run", "--partition", "2026-03-01"]
sys.exit(main())
"""
"""A day by the command line. Which folders are made, and which files opened for writing by Python, goes to a file."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds."""
    source, built, folder = (tmp_path_factory.mktemp(name) for name in ("source", "built", "installed"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    shutil.copytree(PROJECT / "cio_pipeline", source / "cio_pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, str(built)], cwd=source, check=True, capture_output=True)
    [wheel] = built.iterdir()
    assert wheel.name == f"cio_pipeline-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_delivers_a_day_and_loads_into_dagster_from_an_empty_folder(
    installed: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scratch, written = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("written") / "files"
    about = {"distinct_id": "jane", "timestamp": "2026-03-01T10:00:00Z", "properties": {"$set": {"plan": "pro"}}}
    event = {"uuid": "00000000-0000-4000-8000-000000000001", "event": "paid", **about}
    with posthog.serve([event]) as source, customerio.serve() as workspace:
        environment = Sandbox(source.url, workspace.url).environment(tmp_path, date(2026, 3, 1))
        environment |= {"PYTHONPATH": str(installed), "CIO_DATA_DIR": "tables", "CIO_WORKERS": "1"}
        environment |= {"TMPDIR": str(scratch), "WRITTEN": str(written)}
        ran = subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith(str(installed))
        assert workspace.totals()["events"] == 1
    files = {file for file in map(Path, written.read_text().splitlines()) if "__pycache__" not in file.parts}
    assert {file for file in files if not {scratch, tmp_path / "tables", Path("/dev")} & {file, *file.parents}} == set()
    assert {file for file in files if scratch in file.parents}, "what does not fit in memory goes where TMPDIR says"
    assert {path.name for path in tmp_path.iterdir()} == {"tables"}, "a relative path counts from the working directory"
    validate = ["-m", "dagster", "definitions", "validate", "-w", str(installed / "cio_pipeline" / "workspace.yaml")]
    validated = subprocess.run([sys.executable, *validate], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Validation successful for code location cio_pipeline" in validated.stderr + validated.stdout


def test_the_wheel_has_all_that_is_no_code_and_nothing_of_the_tests(installed: Path) -> None:
    kept = {path for path in PROJECT.glob("cio_pipeline/**/*") if path.is_file() and "__pycache__" not in path.parts}
    there = {path for path in installed.rglob("*") if path.is_file() and not {"__pycache__", DIST_INFO} & set(path.parts)}
    assert {path.relative_to(installed) for path in there} == {path.relative_to(PROJECT) for path in kept}


def test_the_version_stands_in_one_place_and_the_changes_name_it() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    newest = re.search(r"^## ([\w.]+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__
