"""Folders, which do not depend on the working directory, and addresses, with those of this machine."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.values import clean

PROJECT = Path(__file__).resolve().parents[2]
"""The folder that contains the package: the checkout, or site-packages."""

DAGSTER_YAML = PROJECT / "cio_pipeline" / "dagster.yaml"
"""Dagster's settings for an instance of its own."""

WORKSPACE_YAML = PROJECT / "cio_pipeline" / "workspace.yaml"
"""The file that names this code location."""


VARIABLE = re.compile(r"^\$|\$[A-Za-z_{(]|\{\{")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""The beginning of a URL that lacks a slash, or of a folder on Windows."""


def base_folder() -> Path:
    """Returns the folder that relative paths start from: the checkout or, without one, the working directory."""
    return PROJECT if (PROJECT / "pyproject.toml").exists() else Path.cwd()


def is_url(text: str) -> bool:
    """Returns whether it is a URL, and not a path."""
    return "://" in text


def absolute(text: Any) -> Any:
    """Returns a path with `~` expanded, from `base_folder` if it is relative; a URL as it is. Raises `ValueError`."""
    if isinstance(text, str) and text.startswith("file://"):
        text = text.removeprefix("file://")
        if not text.startswith("/"):
            raise ValueError("must have three slashes after file:, or be only the path")
    if not isinstance(text, str) or not text.strip() or is_url(text):
        return text
    return str(_path(text.strip()))


def absolute_database(text: Any) -> Any:
    """Returns a SQLite URL with its file's path made `absolute`; any other URL as it is. Raises `ValueError`."""
    if not isinstance(text, str) or not text.startswith("sqlite"):
        return text
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        return text
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError("must name a file, such as sqlite:////folder/ledger.db: a ledger in memory would forget what was sent")
    return url.set(database=str(_path(url.database))).render_as_string(hide_password=False)


def _path(text: str) -> Path:
    if text[0] in "'\"" or VARIABLE.search(text):
        raise ValueError("is not a plain path: variables are not expanded, and quotes are not removed")
    if SCHEME.match(text):
        raise ValueError("is neither a path nor a URL such as s3://bucket/folder")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~, but there is no such home folder") from None
    return base_folder() / path


def refuse_unusable_folder(name: str, folder: Path) -> None:
    """Raises `SettingsError`, with the setting's name, if the folder cannot be created or written to. Writes nothing."""
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not os.path.isdir(nearest):  # noqa: PTH112 - pathlib raises without permission
        raise SettingsError(f"{name} is wrong: {nearest} is not a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SettingsError(f"{name} is wrong: {nearest} cannot be written to.")
    if "?" in str(folder) or "%" in str(folder):
        raise SettingsError(f"{name} is wrong: no folder in it may have ? or % in its name, which databases would misread.")


def can_be_written(url: str) -> bool:
    """Returns whether tables can be stored at a URL, and outlast the process."""
    return urlsplit(url).scheme not in ("http", "https", "memory")


def refuse_unknown_storage(name: str, place: str) -> None:
    """Raises `SettingsError`, with the setting's name, if a URL's kind of storage cannot be used here."""
    scheme = place.partition("://")[0]
    if not is_url(place) or scheme in ("http", "https"):
        return
    try:
        fsspec.get_filesystem_class(scheme or "none")
    except ImportError:
        why = "its storage needs an extra of cio_pipeline that is not installed (s3, gs, az), or fsspec's package for it"
    except ValueError:
        why = "must be a path, or begin as URLs of a known storage do, such as s3://, gs:// or az://"
    else:
        return
    raise SettingsError(f"{name} is wrong: {why}.")


def dagster_home(data_dir: str) -> Path:
    """Returns DAGSTER_HOME or, without one, a folder in CIO_DATA_DIR, which is created. Raises `SettingsError` if it is not a
    folder."""
    if not (given := clean(os.environ.get("DAGSTER_HOME", ""))):
        home = (base_folder() / "data" if is_url(data_dir) else Path(data_dir)) / "dagster"
        refuse_unusable_folder("CIO_DATA_DIR", home)
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"CIO_DATA_DIR is wrong: {home} cannot be created ({error.strerror}).") from None
        return home
    try:
        home = Path(given).expanduser()
    except RuntimeError:
        raise SettingsError("DAGSTER_HOME is wrong: there is no such home folder.") from None
    if not home.is_absolute():
        raise SettingsError("DAGSTER_HOME is wrong: it must be an absolute path.")
    if not os.path.isdir(home):  # noqa: PTH112
        raise SettingsError(f"DAGSTER_HOME is wrong: {home} is not a folder: create it, and copy dagster.yaml into it.")
    refuse_unusable_folder("DAGSTER_HOME", home)
    os.environ["DAGSTER_HOME"] = given
    return home


def redacted(place: str) -> str:
    """Returns a path or URL without its login and query, which may contain a password, even with special characters."""
    if not is_url(place):
        return place
    if place.startswith("postgres"):
        database = make_url(place)
        kind = database.drivername.partition("+")[0]
        return f"{kind}://{database.host or ''}{_port(database.port)}/{database.database or ''}"
    url = urlsplit(place)
    if url.scheme.startswith("sqlite"):
        return url.path.removeprefix("/")
    if "@" in url.path + url.query + url.fragment:
        return f"{url.scheme}://***"
    host, _, port = url.netloc.rpartition("@")[2].partition(":")
    return f"{url.scheme}://{host}{_port(port)}{url.path}"


def _port(port: int | str | None) -> str:
    return f":{port}" if port else ""


def is_loopback(url: str) -> bool:
    """Returns whether a URL names this machine by a loopback address, or a file or socket on it."""
    if url.startswith(("sqlite", "file:")) or not is_url(url):
        return True
    if url.startswith("postgres"):
        parsed = make_url(url)
        hosts = [parsed.host, *(value for name in ("host", "hostaddr") for value in _texts(parsed.query.get(name)))]
        return all(host.startswith("/") or _is_loopback_host(host) for host in hosts if host) and any(hosts)
    return url.startswith("http") and _is_loopback_host(urlsplit(url).hostname or "")


def _texts(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given or ()


def _is_loopback_host(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
