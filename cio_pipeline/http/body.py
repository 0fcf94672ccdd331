"""Reads and decompresses the body of an answer, within limits."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import requests

from cio_pipeline.http.errors import BodyTooLong, NotWritten, UnusableBody

BLOCK_BYTES = 1 << 16
GZIP_OR_ZLIB = 47
"""The `wbits` with which zlib recognises either by its header."""


def read_body(response: requests.Response, into: IO[bytes] | None, max_bytes: int, end: float) -> None:
    """Reads the body into the response, or that of a 200 into the file, if there is one.

    Raises `BodyTooLong` if it has more than `max_bytes`, `UnusableBody` if it cannot be decompressed or has not ended by `end`
    (`time.monotonic`), `NotWritten`, and whatever urllib3 and the socket raise.
    """
    file = into if response.status_code == 200 else None
    if file is not None:
        with _writing():
            file.seek(0)
            file.truncate()
    content, length = bytearray(), 0
    for block in decompressed(_blocks(response, end), response.headers.get("Content-Encoding", "").strip().lower()):
        length += len(block)
        if length > max_bytes:
            raise BodyTooLong(f"its answer is over {max_bytes:,} bytes")
        if file is None:
            content += block
        else:
            with _writing():
                file.write(block)
    if file is not None:
        with _writing():
            file.flush()
    response._content, response._content_consumed = bytes(content), True  # type: ignore[attr-defined]


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotWritten(error.errno, error.strerror) from None


def _blocks(response: requests.Response, end: float) -> Iterator[bytes]:
    """The blocks of the body as they arrive. Raises `UnusableBody` if one arrives after `end`."""
    while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
        if time.monotonic() > end:
            raise UnusableBody("its answer did not come to an end in time")
        yield block


def decompressed(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """The decompressed body in small blocks, whereas urllib3 would return all that a block decompresses to."""
    if encoding in ("", "identity"):
        yield from blocks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnusableBody("it answered in an encoding that was not requested")
    stream, is_complete = zlib.decompressobj(GZIP_OR_ZLIB), True
    try:
        for received in blocks:
            block = received
            while block:
                yield stream.decompress(block, BLOCK_BYTES)
                is_complete, block = stream.eof, stream.unused_data or stream.unconsumed_tail
                if stream.eof:
                    stream = zlib.decompressobj(GZIP_OR_ZLIB)
        yield stream.flush()
        is_complete = is_complete or stream.eof
    except zlib.error:
        is_complete = False
    if not is_complete:
        raise UnusableBody("its answer is compressed, and cannot be decompressed")
