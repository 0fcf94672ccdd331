"""The environment, completed by `.env`. If both have a name, the environment wins. No name of ours is ever ignored.

Dagster's own commands put `./.env` over the environment before any of our code runs. The environment before that is in `/proc`:
it is the one that the outermost Dagster process was started with. `make ui` starts Dagster in a folder without `.env`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from cio_pipeline.settings.envfile import read_env_file
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.values import clean, parse_names

ENV_FILE = Path(".env")
"""The file in the working directory."""

PREFIXES = ("CIO_", "POSTHOG_", "CUSTOMERIO_")
SANDBOX = "CIO_SANDBOX"
OTHER_NAMES = "CIO_OTHER_NAMES"
DAGSTER_HOME = "DAGSTER_HOME"
KEEP_ENGINES = "KEEP_DAGSTER_ENGINES"
"""Set by this package's own commands for the processes of Dagster that they start: see `defs.dagster_storage`."""

OTHER_TOOLS = (
    *("POSTHOG_API_KEY", "POSTHOG_PROJECT_API_KEY", "POSTHOG_PROJECT_TOKEN", "POSTHOG_KEY", "POSTHOG_TOKEN"),
    *("POSTHOG_DISABLED", "POSTHOG_DEBUG", "POSTHOG_FEATURE_FLAGS_SECURE_API_KEY", "POSTHOG_CLI_*"),
    *("CUSTOMERIO_APP_API_KEY", "CUSTOMERIO_APP_KEY", "CUSTOMERIO_CDP_API_KEY", "CUSTOMERIO_WRITE_KEY"),
    *("CUSTOMERIO_WEBHOOK_SIGNING_KEY", "CUSTOMERIO_WEBHOOK_SECRET"),
    *("*_SERVICE_HOST", "*_SERVICE_PORT", "*_SERVICE_PORT_*", "*_PORT", "*_PORT_[0-9]*_TCP*", "*_PORT_[0-9]*_UDP*"),
)
"""Names with our prefixes that other clients of PostHog and Customer.io use, and those that Kubernetes makes from a service's
name. None of them could be a misspelt setting of ours that has a default."""

DAGSTER = frozenset(["dagster", "dagster-webserver", "dagster_webserver", "dagster-daemon", "dagster._daemon"])
SURE_SPELLING = 0.87
"""The similarity (difflib's ratio) to one of our names from which a name in `.env` without our prefixes counts as a misspelling
of it."""


def load_environment(known: Collection[str]) -> None:
    """Adds the names of `.env` that the environment lacks to it; an empty value counts as not set.

    known: the names of all settings. Raises `SettingsError` if `.env` is ambiguous, or if a name with one of our prefixes is
    not a setting. The sandbox does not read `.env`.
    """
    values = {} if clean(os.environ.get(SANDBOX, "")).lower() == "yes" else read_env_file(ENV_FILE.absolute())
    given = _before_dagster(values) if values else os.environ
    wanted = {name: said if clean(said := given.get(name, "")) else value for name, value in values.items()}
    opened = os.environ.get(DAGSTER_HOME)
    if given is not os.environ and opened and wanted.get(DAGSTER_HOME, opened) != opened:
        raise SettingsError(
            f"{DAGSTER_HOME} is one folder in .env and another in the environment, and Dagster has opened that of .env: "
            "take it out of one of them, or start Dagster with `make ui`."
        )
    os.environ.update(wanted)
    _refuse_unknown(known, values)


def _before_dagster(values: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the environment without what Dagster has put over it from `.env`."""
    if not Path("/proc/self/environ").exists():
        if values and ("DAGSTER_IS_DEV_CLI" in os.environ or DAGSTER & set(Path(sys.argv[0]).parts)):
            raise SettingsError(
                "Dagster has put .env over the environment, and on this system there is no way to tell what that was before: "
                "start Dagster with `make ui`, or in a folder without .env."
            )
        return os.environ
    process, reads_env_file = _outermost_dagster()
    if process is None:
        return os.environ
    try:
        entries = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        raise SettingsError(
            f"The environment of Dagster's process {process.name} cannot be read, and .env has been put over it: "
            "start Dagster with `make ui`, or in a folder without .env."
        ) from None
    before = dict(os.fsdecode(entry).partition("=")[::2] for entry in entries if entry)
    # If it is not certain that Dagster has put .env over the environment, what differs from .env was not put there by it.
    others = {} if reads_env_file else {name: os.environ[name] for name in values if name in os.environ}
    return before | {name: value for name, value in others.items() if value != values[name]}


def _outermost_dagster() -> tuple[Path | None, bool]:
    """Returns the folder in /proc of the outermost process, from this one up, that runs a command of Dagster's that reads
    `.env`.

    If there is none, that of the outermost one that names Dagster and may run it. The second value says whether it is the
    former.
    """
    reads, names, process = None, None, os.getpid()
    while process:
        folder = Path("/proc") / str(process)
        try:
            command = os.fsdecode((folder / "cmdline").read_bytes()).split("\0")
            process = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            break
        words = [Path(word).name for word in command]
        if not words[0].startswith(("python", "pypy", "dagster")) or not DAGSTER & set(words[:6]):
            continue
        names = folder
        if _reads_env_file(words):
            reads = folder
    return reads or names, reads is not None


def _reads_env_file(words: list[str]) -> bool:
    """Returns whether it is a command of Dagster's, as a script or a module, that no other of them has started."""
    place = next(number for number, word in enumerate(words) if word in DAGSTER)
    is_script = all(word.startswith("-") for word in words[1:place])
    is_module = words[place - 1] == "-m" and all(word.startswith("-") for word in words[1 : place - 1])
    is_started_by_another = "--instance-ref" in words or any(
        word.startswith("execute_") for word in words[place + 1 : place + 3]
    )
    return (is_script or is_module) and not is_started_by_another


def _refuse_unknown(known: Collection[str], values: Iterable[str]) -> None:
    """Raises `SettingsError` with all names that seem to be meant for us, but are not settings."""
    others = (*OTHER_TOOLS, *_other_names())
    wrong: dict[str, str] = {}
    for name, value in sorted(os.environ.items()):
        if name in known or not value.strip() or any(fnmatchcase(name, other) for other in others):
            continue
        ours = name.upper().startswith(PREFIXES)
        close = get_close_matches(name.upper(), known, 1, 0.6 if ours else SURE_SPELLING) if ours or name in values else []
        if ours or close:
            wrong[name] = f"{name} (did you mean {close[0]}?)" if close else name
    if wrong:
        be, them = ("is not a setting", "it") if len(wrong) == 1 else ("are not settings", "them")
        names = ", ".join(wrong.values())
        raise SettingsError(
            f"{names} {be}: correct or remove {them}, or name {them} in {OTHER_NAMES} if another tool needs {them}."
        )


def _other_names() -> tuple[str, ...]:
    text = clean(os.environ.get(OTHER_NAMES, ""))
    try:
        return tuple(parse_names(text)) if text else ()
    except ValueError as why:
        raise SettingsError(f"{OTHER_NAMES} is wrong: {why}.") from None
