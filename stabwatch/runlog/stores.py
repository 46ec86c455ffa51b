"""Folders of object stores (s3://, gs://, and what else pyarrow opens by its address)."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pyarrow as pa

from stabwatch.errors import RunLogError

_URL = re.compile(r"^(s3|gs|gcs|abfss?|hdfs|viewfs|file):/+(.*)$", re.S)
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 20.0
ATTEMPTS = 2
"""Of each request. Those who ask try again later."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """Facts of a file in a store: bytes, and nanoseconds since the epoch."""

    size: int
    changed: int


def url_of(path: str | Path) -> str | None:
    """The address of a store; None for a path. `pathlib` makes one slash of two: it is still an address."""
    found = _URL.match(str(path))
    if found is None:
        return None
    scheme, rest = found.groups()
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}".rstrip("/")


def joined(url: str, name: str) -> str:
    """The address of something below an address."""
    base, question, query = url.partition("?")
    return f"{base.rstrip('/')}/{name}{question}{query}"


def parent_and_name(url: str) -> tuple[str, str]:
    """The address of the folder that an address is in, and its name there."""
    base, question, query = url.partition("?")
    parent, _, name = base.rstrip("/").rpartition("/")
    return f"{parent}{question}{query}", name


def shown(url: str) -> str:
    """An address without its options, which may have secrets."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


class Store:
    """One folder of a store. Its methods raise OSError while the store does not answer.

    Raises RunLogError if the address is none that pyarrow opens.
    """

    def __init__(self, url: str, environ: Mapping[str, str] = os.environ) -> None:
        self.url = url
        try:
            self._system, base = _opened(url, environ)
        except (pa.ArrowInvalid, ImportError, TypeError, ValueError) as error:
            raise RunLogError(f"{shown(url)} cannot be opened: {error}") from error
        self._base = base.rstrip("/")

    def files(self) -> dict[str, Stored]:
        """All files below it, by their path from there."""
        from pyarrow.fs import FileSelector, FileType

        found = self._system.get_file_info(FileSelector(self._base, recursive=True, allow_not_found=True))
        start = len(self._base) + 1
        return {f.path[start:]: Stored(f.size, f.mtime_ns or 0) for f in found if f.type == FileType.File}

    def is_file(self, name: str = "") -> bool:
        """Whether there is a file of a name, or the address itself is one."""
        from pyarrow.fs import FileType

        path = f"{self._base}/{name}" if name else self._base
        return bool(self._system.get_file_info(path).type == FileType.File)

    def read(self, name: str, target: Path) -> None:
        """Copy a file to this machine, whole or not at all; `name` '' is the address itself."""
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            path = f"{self._base}/{name}" if name else self._base
            with self._system.open_input_stream(path) as source, open(draft, "wb") as out:
                shutil.copyfileobj(source, out, CHUNK)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def write(self, source: Path, name: str) -> None:
        """Copy a file into the store."""
        if self._system.type_name == "local":
            self._system.create_dir(self._base, recursive=True)
        with open(source, "rb") as file, self._system.open_output_stream(f"{self._base}/{name}") as out:
            shutil.copyfileobj(file, out, CHUNK)


def _opened(url: str, environ: Mapping[str, str]) -> tuple[Any, str]:
    from pyarrow import fs

    scheme = url.partition(":")[0]
    if scheme == "s3":
        base, _, query = url.partition("?")
        options: dict[str, Any] = {name: values[-1] for name, values in parse_qs(query).items()}
        endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        if endpoint and "endpoint_override" not in options:
            protocol, _, options["endpoint_override"] = endpoint.rstrip("/").rpartition("://")
            options.setdefault("scheme", protocol or "https")
        options["retry_strategy"] = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        limits = {"connect_timeout": CONNECT_SECONDS, "request_timeout": REQUEST_SECONDS}
        return fs.S3FileSystem(**limits, **options), base.removeprefix("s3://")
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in url:
        url += f"{'&' if '?' in url else '?'}retry_limit_seconds={timedelta(seconds=REQUEST_SECONDS).seconds}"
    return fs.FileSystem.from_uri(url)
