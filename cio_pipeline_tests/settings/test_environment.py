"""The environment wins over `.env`, also where Dagster has put `.env` over it, and no name of ours is ignored."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from cio_pipeline.settings import environment
from cio_pipeline.settings.envfile import read_env_file
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.load import load_days_settings, load_settings
from cio_pipeline.settings.places import PROJECT
from cio_pipeline.settings.settings import NAMES, Settings

KEYS = {
    "CUSTOMERIO_SITE_ID": "site",
    "CUSTOMERIO_API_KEY": "key",
    "POSTHOG_PROJECT_ID": "1",
    "POSTHOG_PERSONAL_API_KEY": "phx",
}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The keys in the environment, and `.env` in a folder of its own."""
    monkeypatch.setattr(environment, "ENV_FILE", tmp_path / ".env")
    monkeypatch.setattr(os, "environ", {**os.environ, **KEYS})
    return monkeypatch


def test_the_environment_wins_and_an_empty_value_in_it_counts_as_not_set(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CIO_DAYS_PER_RUN=3\nCIO_LATE_DAYS=4\nCIO_START_DATE=2026-01-01\nAWS_PROFILE=mine\n")
    os.environ.update(CIO_DAYS_PER_RUN="5", CIO_LATE_DAYS=" ", CIO_START_DATE='""')
    found = load_days_settings()
    assert (found.days_per_run, found.late_days, str(found.start_date)) == (5, 4, "2026-01-01")
    assert os.environ["AWS_PROFILE"] == "mine"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CIO_EVENT_ALLOW_LIST", "CIO_EVENT_ALLOWLIST"),
        ("CIO_ANONYMOUS_USER", "CIO_ANONYMOUS_USERS"),
        ("cio_event_allowlist", "CIO_EVENT_ALLOWLIST"),
        ("Posthog_Host", "POSTHOG_HOST"),
        ("CIO_SITE_ID", "CUSTOMERIO_SITE_ID"),
        ("CUSTOMERIO_TRACKING_END_POINT", "CUSTOMERIO_TRACKING_ENDPOINT"),
    ],
)
@pytest.mark.parametrize("where", ["environment", ".env"])
def test_a_misspelled_name_is_refused_with_the_one_that_was_meant(
    env: pytest.MonkeyPatch, tmp_path: Path, name: str, meant: str, where: str
) -> None:
    if where == ".env":
        (tmp_path / ".env").write_text(f"{name}=secret\n")
    else:
        os.environ[name] = "secret"
    for load in (load_settings, load_days_settings):
        with pytest.raises(SettingsError, match=rf"^{name} \(did you mean {meant}\?\) is not a setting: .+\.$") as refused:
            load()
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["CUSTOMER_IO_SITE_ID", "CI0_EVENT_ALLOWLIST", "CIOEVENT_ALLOWLIST"])
def test_a_name_with_a_misspelled_prefix_is_refused_in_the_file_that_is_ours(
    env: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / ".env").write_text(f"{name}=x\n")
    with pytest.raises(SettingsError, match=rf"^{name} \(did you mean"):
        load_settings()


def test_all_unknown_names_are_in_one_sentence_and_may_be_silenced(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CUSTOMERIO_BAR_A=1\n")
    os.environ.update(POSTHOG_FOO="1", CIO_EMPTY="")
    with pytest.raises(SettingsError, match=r"^CUSTOMERIO_BAR_A.*, POSTHOG_FOO.* are not settings: correct or remove them"):
        load_settings()
    for given in (
        "POSTHOG_FOO, CUSTOMERIO_BAR_*",
        '"POSTHOG_FOO,CUSTOMERIO_BAR_*"',
        '"POSTHOG_FOO", "CUSTOMERIO_BAR_*"',
        '["POSTHOG_FOO", "CUSTOMERIO_BAR_*"]',
    ):
        os.environ["CIO_OTHER_NAMES"] = given
        assert load_settings().other_names == ("POSTHOG_FOO", "CUSTOMERIO_BAR_*")


def test_a_sandbox_in_quotes_reads_no_file_either(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CIO_LATE_DAYS=4\n")
    os.environ["CIO_SANDBOX"] = '"Yes"'
    assert load_days_settings().late_days == 2


def test_names_of_other_clients_and_of_kubernetes_pass(env: pytest.MonkeyPatch) -> None:
    others = ("POSTHOG_API_KEY", "CUSTOMERIO_APP_API_KEY", "POSTHOG_SERVICE_HOST", "CIO_PIPELINE_PORT_8000_TCP_ADDR")
    os.environ.update(dict.fromkeys(others, "x"))
    load_settings()


def test_no_setting_is_taken_for_another_tools() -> None:
    assert not [name for name in NAMES if any(fnmatchcase(name, other) for other in environment.OTHER_TOOLS)]


def test_the_example_is_readable_and_names_settings_only(tmp_path: Path) -> None:
    example = (PROJECT / ".env.example").read_text()
    (tmp_path / ".env").write_text(re.sub(r"^# (?=[A-Z_]+=)", "", example, flags=re.MULTILINE))
    assert set(read_env_file(tmp_path / ".env")) == NAMES - {"CIO_SANDBOX"}


def test_the_list_of_settings_has_every_setting_and_each_value_to_choose_from() -> None:
    table = "".join(line for line in (PROJECT / "docs" / "settings.md").read_text().splitlines() if line.startswith("| `"))
    named = re.findall(r"`([^`]*)`", table)
    assert [name for name in NAMES if name not in named] == []
    for field in Settings.model_fields.values():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        assert [choice for choice in choices if choice not in named] == []


DAGSTER = """
import os, subprocess, sys
from dagster._core.secrets.env_file import get_env_var_dict
os.environ.update(get_env_var_dict(os.getcwd()))
read = (
    "from cio_pipeline.settings.load import load_days_settings as l; s = l();"
    "print(s.days_per_run, s.late_days, s.start_date)"
)
sys.exit(subprocess.call([sys.executable, "-c", read]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_environment_wins_over_what_dagster_has_put_over_it(tmp_path: Path) -> None:
    (tmp_path / "dagster").write_text(DAGSTER)
    (tmp_path / ".env").write_text("CIO_DAYS_PER_RUN=3\nCIO_LATE_DAYS=4\n")
    started = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "CIO_DAYS_PER_RUN": "5"}
    command = [sys.executable, str(tmp_path / "dagster")]
    said = subprocess.run(command, cwd=tmp_path, env=started, capture_output=True, text=True, check=True).stdout
    assert said == "5 4 2025-01-01\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("said", "refused"), [("/of/the/environment", True), ("/of/the/file", False), ("", False)])
def test_dagsters_own_folder_must_not_be_another_in_the_file_that_dagster_has_read(
    env: pytest.MonkeyPatch, tmp_path: Path, said: str, refused: bool
) -> None:
    (tmp_path / ".env").write_text("DAGSTER_HOME=/of/the/file\n")
    os.environ["DAGSTER_HOME"] = "/of/the/file"
    env.setattr(environment, "_before_dagster", lambda _: {"DAGSTER_HOME": said})
    if not refused:
        load_days_settings()
        assert os.environ["DAGSTER_HOME"] == "/of/the/file"
        return
    with pytest.raises(SettingsError, match=r"^DAGSTER_HOME is one folder in \.env and another in the environment"):
        load_days_settings()


def test_without_proc_it_is_refused_that_dagster_has_read_the_file(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exists = Path.exists
    env.setattr(Path, "exists", lambda self: str(self) != "/proc/self/environ" and exists(self))
    (tmp_path / ".env").write_text("CIO_LATE_DAYS=4\n")
    env.setattr(sys, "argv", ["/somewhere/dagster/__main__.py", "api", "grpc"])
    with pytest.raises(SettingsError, match="start Dagster with `make ui`"):
        load_days_settings()
    env.setattr(sys, "argv", ["/somewhere/cio_pipeline/__main__.py", "run"])
    assert load_days_settings().late_days == 4


@pytest.mark.parametrize(
    ("command", "reads"),
    [
        ("python dagster dev -w workspace.yaml", True),
        ("python -m dagster api grpc -p 4000", True),
        ("python -E -u -m dagster code-server start", True),
        ("dagster-webserver -p 3000", True),
        ("python -m dagster api grpc --socket x --instance-ref y", False),
        ("python -m dagster api execute_run x", False),
        ("python wrapper.py dagster dev", False),
        ("python coverage run -m dagster dev", False),
    ],
)
def test_dagsters_own_command_is_told_from_what_only_names_it(command: str, reads: bool) -> None:
    assert environment._reads_env_file(command.split()) is reads


WRAPPER = """
import os, subprocess, sys
os.environ["CIO_DAYS_PER_RUN"] = "5"
sys.exit(subprocess.call([sys.executable, *sys.argv[2:]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_a_wrapper_that_only_names_dagster_has_set_wins(tmp_path: Path) -> None:
    (tmp_path / "wrapper.py").write_text(WRAPPER)
    (tmp_path / "dagster").write_text(DAGSTER)
    (tmp_path / ".env").write_text("CIO_DAYS_PER_RUN=3\nCIO_LATE_DAYS=4\n")
    started = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "wrapper.py", "dagster", "dagster"]
    said = subprocess.run(command, cwd=tmp_path, env=started, capture_output=True, text=True, check=True).stdout
    assert said == "5 4 2025-01-01\n"
