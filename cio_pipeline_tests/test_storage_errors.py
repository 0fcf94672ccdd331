"""Errors of the storage are explained with a remedy, and without a key or a signed URL."""

from __future__ import annotations

import errno
import socket
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, cast
from urllib.parse import parse_qs, urlsplit

import botocore.exceptions
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from dagster import DagsterInstance
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from cio_pipeline.defs.delivery.ledger_checkpoint import ledger_is_stale
from cio_pipeline.defs.store import Store
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.exports.event_filter import EventFilter
from cio_pipeline.posthog.exports.files import read_events
from cio_pipeline.posthog.exports.folder import Folder, list_folder
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.storage_errors import explain
from cio_pipeline.tables.files import StorageError
from cio_pipeline.tables.tables import Tables

START = datetime(2024, 5, 1, tzinfo=UTC)
END = START + timedelta(days=1)
DAY = "2024-05-01"
NAME = "2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00"
SECRET = "AKIASECRETKEY"
CLOSED = "closed"
STATUS = {
    "ExpiredToken": 400,
    "NoSuchKey": 404,
    "NoSuchBucket": 404,
    "PermanentRedirect": 301,
    "AuthorizationHeaderMalformed": 400,
    "SlowDown": 503,
}


class Storage(BaseHTTPRequestHandler):
    """A stand-in for Amazon S3, with one file. It answers with the error `code` when the file is requested, and with `listing`
    when it is listed; for CLOSED, it closes the connection. Requests for `objects`, by the end of their names, succeed."""

    code = listing = head = ""
    objects: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        failing = self.listing if "list-type" in query else self.code
        if (found := self._object()) is not None:
            self._answer(200, found.decode())
        elif failing == CLOSED:
            self.close_connection = True
        elif failing:
            status = STATUS.get(failing, 403)
            self._answer(status, f"<Error><Code>{failing}</Code><Message>{SECRET}?X-Amz-Signature=1</Message></Error>")
        elif "list-type" in query:
            file = f"<Key>{NAME}.jsonl</Key><Size>9</Size><LastModified>2024-05-02T00:00:00.000Z</LastModified>"
            self._answer(200, f"<ListBucketResult><KeyCount>1</KeyCount><Contents>{file}</Contents></ListBucketResult>")
        else:
            self._answer(200, "{}")

    do_PUT = do_GET  # noqa: N815

    def do_HEAD(self) -> None:
        found = self._object()
        self.send_response(STATUS[self.head] if self.head else 200)
        self.send_header("Content-Length", "9" if found is None else str(len(found)))
        self.end_headers()

    def _object(self) -> bytes | None:
        return next((content for end, content in self.objects.items() if self.path.endswith(end)), None)

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Storage]]:
    handler = type("Handler", (Storage,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    S3FileSystem.clear_instance_cache()
    yield handler
    S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


CODES = {
    "ExpiredToken": "the credentials for the storage have expired: renew them",
    "AccessDenied": "the storage refuses access: let the credentials list the bucket and read",
    "InvalidObjectState": "it is archived .such as in Glacier.: restore it",
    "NoSuchKey": "it has disappeared since the folder was listed",
    "InvalidAccessKeyId": "the storage does not accept the credentials",
    "SignatureDoesNotMatch": "the storage does not accept the credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "SlowDown": "the storage is too busy or has a problem: run the day again later",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION",
}


@pytest.mark.parametrize("code", CODES)
def test_amazons_error_for_a_file_is_explained(storage: type[Storage], code: str) -> None:
    storage.code = code
    with pytest.raises(
        NotExtracted, match=rf"^{NAME.replace('+', '.')}\.jsonl cannot be read: {CODES[code]}.*\({code}\)"
    ) as error:
        list(BatchExportSource("s3://exports", 2, (), "set").events(START, END).frames)
    assert SECRET not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("NoSuchBucket", "there is no such bucket: check its name in the setting"),
        ("AccessDenied", "the storage refuses access"),
        ("ExpiredToken", "the credentials for the storage have expired"),
        ("PermanentRedirect", "the bucket is in another region"),
    ],
)
def test_amazons_error_for_listing_a_bucket_is_explained(storage: type[Storage], code: str, names: str) -> None:
    storage.listing = code
    with pytest.raises(NotExtracted, match=f"^CIO_BATCH_EXPORT_URL cannot be listed: {names}") as error:
        BatchExportSource("s3://exports", 2, (), "set").check()
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_missing_credentials_and_an_unreachable_server_are_explained(
    storage: type[Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not storage.code
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(NotExtracted, match="no credentials for the storage were found: set AWS_ACCESS_KEY_ID"):
        BatchExportSource("s3://exports-two", 2, (), "set").check()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    S3FileSystem.clear_instance_cache()
    with pytest.raises(NotExtracted, match="the storage cannot be reached: check the network"):
        BatchExportSource("s3://exports-three", 2, (), "set").check()


TABLES = {
    "ExpiredToken": "the credentials for the storage have expired: renew them (ExpiredToken).",
    "AccessDenied": "the storage refuses access: let the credentials",
    "NoSuchBucket": "there is no such bucket: check its name in the setting (NoSuchBucket).",
    "InvalidObjectState": "it is archived (such as in Glacier): restore it first (InvalidObjectState).",
    "SlowDown": "the storage is too busy or has a problem: run the day again later (SlowDown).",
    CLOSED: "the storage cannot be reached: check the network, the proxy, and AWS_ENDPOINT_URL",
}
POINTER = b'{"version":"v","rows":{"events":[1]},"hashes":{"events":["x"]},"about":{}}'
EVENTS = f"events of {DAY} (CIO_DATA_DIR) cannot be read: "
NUMBERS = pa.schema([("n", pa.int64())])


@pytest.mark.parametrize("code", TABLES)
def test_a_buckets_error_for_tables_is_explained_without_advice_to_materialize_them_again(
    storage: type[Storage], code: str
) -> None:
    storage.code = code
    tables = Tables("s3://tables/data")
    with pytest.raises(StorageError) as pointer:
        tables.find_version("events", DAY)
    mark = cast("Store", SimpleNamespace(tables=tables))
    with pytest.raises(StorageError) as forgotten:
        ledger_is_stale(mark, cast("DagsterInstance", None))
    with pytest.raises(StorageError) as written, tables.replace(DAY, {"numbers": NUMBERS}) as new:
        new.shards.append(new.writer.write(0, {"numbers": pa.table({"n": [1]})}))
    storage.objects = {"current.json": POINTER}
    with pytest.raises(StorageError) as shard:
        list(tables.read("events", DAY))
    told = TABLES[code]
    assert str(pointer.value).startswith(f"{EVENTS}{told}")
    assert str(shard.value).startswith(f"Shard 0 of {EVENTS}{told}")
    assert str(forgotten.value).startswith(f"s3://tables/data/ledger_checkpoint.json (CIO_DATA_DIR) cannot be read: {told}")
    assert str(written.value).startswith(f"The folder s3://tables/data/numbers/{DAY} (CIO_DATA_DIR) cannot be written: {told}")
    for error in (pointer, forgotten, written, shard):
        assert SECRET not in "".join(traceback.format_exception(error.value))


def test_an_error_without_a_body_is_not_mistaken_for_a_damaged_file(storage: type[Storage]) -> None:
    storage.head = "ExpiredToken"
    with pytest.raises(StorageError, match=r"^events of .+ have the credentials expired, .+ \(400\)\.$"):
        Tables("s3://tables/data").find_version("events", DAY)


def test_a_table_that_has_disappeared_from_a_bucket_is_to_be_materialized_again(storage: type[Storage]) -> None:
    storage.code, storage.objects = "NoSuchKey", {"current.json": POINTER}
    with pytest.raises(StorageError, match=r"^Shard 0 of events of .+ \(FileNotFoundError\): materialize events for"):
        list(Tables("s3://tables/data").read("events", DAY))


@pytest.mark.parametrize("code", [*CODES, "TokenRefreshRequired", "NoSuchBucket", "403", "404", "503", "KMS.DisabledException"])
def test_codes_are_found_however_the_client_wraps_them(code: str) -> None:
    bare = ClientError({"Error": {"Code": code, "Message": SECRET}}, "GetObject")
    for error in (bare, translate_boto_error(bare)):
        assert explain(error).endswith(f"({code})")
        assert "complete" not in explain(error)
        assert SECRET not in explain(error)


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (botocore.exceptions.NoCredentialsError(), "no credentials"),
        (botocore.exceptions.ProfileNotFound(profile=SECRET), "no credentials"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url=SECRET), "cannot be reached"),
        (botocore.exceptions.SSLError(endpoint_url=SECRET, error="x"), "certificate is not trusted"),
        (botocore.exceptions.ConnectTimeoutError(endpoint_url=SECRET), "cannot be reached"),
        (PermissionError(errno.EACCES, SECRET), "this user may not read it"),
        (PermissionError(SECRET), "refuses access"),
        (FileNotFoundError(errno.ENOENT, SECRET), "has disappeared since"),
        (TimeoutError(SECRET), "cannot be reached"),
        (OSError(errno.EIO, SECRET), "is the file complete?"),
        (pa.ArrowInvalid(SECRET), "is the file complete?"),
        (pa.ArrowNotImplementedError(SECRET), "its compression is not supported"),
        (RuntimeError(SECRET), "is the file complete?"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_other_errors_are_explained_by_their_class(error: Exception, names: str) -> None:
    assert names in explain(error)
    assert SECRET not in explain(error)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"<html><body>Sign in</body></html>", "it is a web page or an error message, not an export"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "it is a web page or an error message, not an export"),
        (b"", "it is empty, which a Parquet file never is"),
        (b"PARE1234PARE", "it is encrypted"),
        (b"\x28\xb5\x2f\xfd1234", "was compressed with zstd: decompress it"),
        (b"\x1f\x8b1234", "was compressed with gzip: decompress it"),
        (b'{"uuid":"a"}', "it is not a Parquet file, although its name says so"),
        (b"PAR1" + b"x" * 100, "is the file complete?"),
        (b"PAR1" + b"\xff" * 100 + b"PAR1", "is the file complete?"),
    ],
)
def test_a_parquet_file_with_other_content_is_reported_as_what_it_is(tmp_path: Path, content: bytes, names: str) -> None:
    (tmp_path / f"{NAME}.parquet").write_bytes(content)
    folder = list_folder(str(tmp_path))
    with pytest.raises(NotExtracted) as error:
        list(read_events(f"{tmp_path}/{NAME}.parquet", folder, EventFilter(START, END, (), "set")))
    assert str(error.value).startswith(f"{NAME}.parquet cannot be read: ")
    assert names in str(error.value)


def test_credentials_in_the_url_are_in_no_message(tmp_path: Path) -> None:
    folder = Folder(None, "user:secret@host/exports", {}, {})
    assert folder.name("user:secret@host/exports/2024/a.parquet") == "2024/a.parquet"
    assert folder.name(str(tmp_path / "b.parquet")).endswith("b.parquet")
