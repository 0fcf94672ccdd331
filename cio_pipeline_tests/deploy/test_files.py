"""What is in `deploy/` is what the tools that read it expect, and says the same as the code and the package's own files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml
from dagster import DagsterInstance

from cio_pipeline import __version__
from cio_pipeline.settings.environment import PREFIXES
from cio_pipeline.settings.places import DAGSTER_YAML, PROJECT, WORKSPACE_YAML
from cio_pipeline.settings.settings import NAMES
from cio_pipeline_tests.deploy.files import DEPLOY, DOCKERFILE, image_command, image_environment, read
from cio_pipeline_tests.postgres import database

BIN = Path(sys.executable).parent
OTHERS = {"DAGSTER_HOME", "DAGSTER_POSTGRES_URL", "CODE_LOCATION_HOST", "TMPDIR", "PATH", "PYTHONUNBUFFERED"}


def shown(*command: str | Path) -> str:
    """What a linter finds."""
    ended = subprocess.run(list(map(str, command)), cwd=DEPLOY, capture_output=True, text=True)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="hadolint's package is for Linux")
def test_hadolint_has_nothing_to_say_of_the_image() -> None:
    assert shown(BIN / "hadolint", "Dockerfile") == ""


def test_the_image_is_built_of_files_that_are_there_and_that_the_build_may_see() -> None:
    copied = [line.split()[1:-1] for line in re.findall(r"^COPY (?!--from).+$", DOCKERFILE, re.MULTILINE)]
    sources = {word for words in copied for word in words if not word.startswith("--")}
    seen = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert len(sources) == 8
    assert {source for source in sources if not (PROJECT / source).exists() or source.partition("/")[0] not in seen} == set()


def test_compose_yaml_is_what_the_compose_specification_asks_for() -> None:
    assert shown(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml") == ""
    compose = read("compose.yaml")
    for name, service in compose["services"].items():
        assert set(service["secrets"]) <= set(compose["secrets"]), name
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(compose["volumes"]), name
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="this system has no systemd")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for unit in (DEPLOY / "systemd").glob("*.service"):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/cio_pipeline/bin", str(BIN)))
    assert len(list(tmp_path.iterdir())) == 4
    assert shown("systemd-analyze", "verify", *tmp_path.iterdir()) == ""


def test_the_entrypoint_makes_variables_of_secrets_that_are_files(tmp_path: Path) -> None:
    (tmp_path / "CUSTOMERIO_API_KEY").write_text('a key with $(date) and "quotes"\n')
    (tmp_path / "lower").write_text("no variable")
    command = ["sh", str(DEPLOY / "entrypoint.sh"), "sh", "-c", "umask; printenv CUSTOMERIO_API_KEY"]
    environment = {"PATH": os.environ["PATH"], "SECRETS": str(tmp_path)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said == '0077\na key with $(date) and "quotes"\n'


def test_the_instance_on_postgresql_is_the_packages_own_but_for_where_it_keeps_things() -> None:
    ours, own = read("dagster.yaml"), yaml.safe_load(DAGSTER_YAML.read_text())
    assert {name: ours[name] for name in own} == own
    assert set(ours) - set(own) == {"storage", "compute_logs", "retention"}


def test_dagster_loads_the_instance_on_postgresql(
    postgres_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(DEPLOY / "dagster.yaml", tmp_path)
    with database(postgres_server, "dagster_instance") as url:
        location = sa.make_url(url).set(drivername="postgresql+psycopg2")
        monkeypatch.setenv("PGPASSWORD", location.password or "")
        address = location.set(password=None).render_as_string(hide_password=False)
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", address)
        with DagsterInstance.from_config(str(tmp_path)) as instance:
            assert instance.get_runs_count() == 0
            assert instance.managed_python_loggers == ["cio_pipeline"]


def test_dagster_loads_its_own_dagster_yaml_with_the_part_for_an_existing_instance(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((DEPLOY / "existing-dagster.yaml").read_text())
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.managed_python_loggers == ["cio_pipeline"]
        limits = instance.get_concurrency_config().run_queue_config
        assert limits is not None
        assert limits.tag_concurrency_limits == [{"key": "cio_pipeline/backfill", "limit": 1}]


def test_every_name_is_a_setting_and_every_way_loads_the_same_code() -> None:
    compose, values = read("compose.yaml"), read("values.yaml")
    [deployment] = values["dagster-user-deployments"]["deployments"]
    given = {*image_environment(), *deployment["env"]}
    for service in ("code", "webserver", "daemon", "migrate"):
        given |= {*compose["services"][service]["environment"], *compose["services"][service]["secrets"]}
    units = "".join(unit.read_text() for unit in (DEPLOY / "systemd").glob("*.service"))
    given |= set(re.findall(r"^Environment=(\w+)", units, re.MULTILINE))
    assert given - NAMES - OTHERS == {"PGPASSWORD"}
    assert not [name for name in OTHERS if name.startswith(PREFIXES)], "the pipeline would refuse it"
    [location] = yaml.safe_load(WORKSPACE_YAML.read_text())["load_from"]
    module = location["python_module"]["module_name"]
    assert image_command()[-1] == module
    assert module in units
    assert module in deployment["dagsterApiGrpcArgs"]
    assert read("workspace.yaml")["load_from"][0]["grpc_server"]["location_name"] == location["python_module"]["location_name"]


def test_the_chart_has_the_limits_and_the_loggers_of_dagster_yaml() -> None:
    values, own = read("values.yaml"), yaml.safe_load(DAGSTER_YAML.read_text())
    assert values["pythonLogs"]["managedPythonLoggers"] == own["python_logs"]["managed_python_loggers"]
    queue = values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    assert queue["tagConcurrencyLimits"] == own["concurrency"]["runs"]["tag_concurrency_limits"]
    assert queue["maxConcurrentRuns"] == own["concurrency"]["runs"]["max_concurrent_runs"]
    assert values["additionalInstanceConfig"]["run_retries"] == own["run_retries"]
    [deployment] = values["dagster-user-deployments"]["deployments"]
    assert deployment["image"]["tag"] == __version__
    assert deployment["securityContext"]["runAsUser"] == int(re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[0])
    assert {mount["name"] for mount in deployment["volumeMounts"]} == {volume["name"] for volume in deployment["volumes"]}


def test_the_guide_names_each_file() -> None:
    guide = (PROJECT / "docs" / "deploy.md").read_text()
    files = {path.name for path in DEPLOY.iterdir() if not path.name.endswith((".dockerignore", ".sh", ".lock"))}
    assert {name for name in files if f"`{name}`" not in guide and f"deploy/{name}" not in guide} == set()
