"""`make demo` and the tests use nothing that a `.env` or the environment names.

`test_ui.py` tests `make dev` in the same way.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cio_pipeline.sandbox.demo import FIRST
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.places import PROJECT
from cio_pipeline_tests.poison import Poison, poisoned

DEMO = "import pathlib, sys; from cio_pipeline.sandbox.demo import demo; sys.exit(demo(pathlib.Path(sys.argv[1])))"
TESTS = (
    "test_end_to_end.py::test_a_wrong_key_is_one_sentence_and_nothing_is_sent",
    "defs/assets/test_deliver.py::test_the_receipt_shows_counts_traffic_and_a_sample_without_data",
    "settings/test_settings.py::test_the_defaults_are_the_documented_ones",
)


def in_poison(poison: Poison, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=poison.environment,
        cwd=poison.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_demo_uses_nothing_named_in_dotenv_or_the_environment(tmp_path: Path) -> None:
    with poisoned(tmp_path / "poison") as poison:
        ran = in_poison(poison, "-c", DEMO, str(tmp_path / "demo"))
        assert (ran.returncode, ran.stderr) == (0, "")
        assert "A local PostHog (http://127.0.0.1:" in ran.stdout.splitlines()[0]
        assert ran.stdout.count("sends to http://127.0.0.1:") == 3
        assert poison.touched() == []
    assert (tmp_path / "demo" / "ledger.db").exists()


def test_the_tests_use_nothing_named_in_dotenv_or_the_environment(tmp_path: Path) -> None:
    tests = [str(PROJECT / "cio_pipeline_tests" / test) for test in TESTS]
    options = ["-q", "-p", "no:cacheprovider", "-c", str(PROJECT / "pyproject.toml"), "--rootdir", str(PROJECT)]
    with poisoned(tmp_path / "poison") as poison:
        ran = in_poison(poison, "-m", "pytest", *options, "--basetemp", str(tmp_path / "nested"), *tests)
        assert ran.returncode == 0, ran.stdout
        assert poison.touched() == []


def test_a_sandbox_on_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^https://track\.customer\.io is refused: the sandbox reads and sends on this"):
        Sandbox("http://127.0.0.1:1", "https://track.customer.io").environment(tmp_path, FIRST)
