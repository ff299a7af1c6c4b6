"""Downloads that can be trusted: checked by sha256, resumed where they broke off, complete or not there, and never larger than expected.

Pooch checks, and puts in place what is right; what fetches for it is ours, because its own downloader neither resumes nor has a limit.
"""

import contextlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinygpt.files import read_digest

_PIECE_BYTES = 1 << 18
_TIMEOUT_S = 30
_TRIES = 4


def download(url: str, path: Path, sha256: str = "", *, max_bytes: int = 1 << 30, wait_s: float = 1.0) -> Path:
    """Fetches a file to `path`; what is there already, and right, is not fetched again.

    What has arrived lies in `path`.part until it is complete; the next call goes on from there.

    sha256      in hex; empty: not checked (of an archive whose members are checked one by one)
    max_bytes   refuse more than this
    wait_s      before the second try; doubled for each one after
    Raises ConnectionError if the server cannot be reached or breaks off again and again, ValueError for too much or other content.
    """
    import pooch  # here, because only a download needs it

    found = ""  # the sha256 of what has arrived, for the message: Pooch deletes what is wrong

    def fetch(url: str, output_file: str, _: Any) -> None:
        """A downloader as Pooch calls it."""
        nonlocal found
        part = path.with_name(path.name + ".part")
        _fetch(url, part, max_bytes, wait_s)
        found = read_digest(part).sha256
        part.replace(output_file)

    with _silent(pooch.get_logger()):
        try:
            pooch.retrieve(url, known_hash=sha256 or None, fname=path.name, path=path.parent, downloader=fetch)
        except ValueError as error:
            if not found:  # nothing has arrived, so it is not the content that is wrong
                raise
            raise ValueError(f"{url}: sha256 {found}, expected {sha256}; something else answered, or the file has changed") from error
    return path


def cache_folder() -> Path:
    """Where tinygpt keeps what it can fetch or make again: TINYGPT_CACHE, else the user's cache folder of this system."""
    folder = os.environ.get("TINYGPT_CACHE")
    if folder:
        return Path(folder)
    import pooch  # knows where caches belong on each system

    return Path(pooch.os_cache("tinygpt"))


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Only warnings, for a while: a download is reported by whoever asks for it."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fetch(url: str, part: Path, max_bytes: int, wait_s: float) -> None:
    """Fetches what `part` lacks, in several tries. Raises ConnectionError if they all fail, ValueError for too much."""
    for attempt in range(_TRIES):
        try:
            _fetch_rest(url, part, max_bytes)
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError, EOFError) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or attempt == _TRIES - 1:
                reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                raise ConnectionError(f"{url}: {reason}, expected a download; check address and network, and try again") from error
            time.sleep(wait_s * 2**attempt)


def _fetch_rest(url: str, part: Path, max_bytes: int) -> None:
    """Appends to `part` what is missing. Raises EOFError if the connection ends early."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # range not satisfiable: all of it is there
            return
        raise
    with response:
        if have and response.status != 206:  # a server that sends all of it again
            have = 0
        length = response.headers.get("Content-Length", "")
        announced = have + int(length) if length.isdecimal() else None
        if announced is not None and announced > max_bytes:
            raise ValueError(f"{url}: {announced:,} bytes, expected at most {max_bytes:,}; is it the right address?")
        with part.open("ab" if have else "wb") as file:
            while piece := response.read(_PIECE_BYTES):
                have += len(piece)
                if have > max_bytes:
                    file.close()
                    part.unlink()
                    raise ValueError(f"{url}: more than {max_bytes:,} bytes, expected at most that; is it the right address?")
                file.write(piece)
    if announced is not None and have < announced:
        raise EOFError(f"broken off after {have:,} of {announced:,} bytes")
