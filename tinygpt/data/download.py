"""Downloads that can be trusted: checked by sha256, resumed where they broke off, complete or not there, and never larger than expected.

Pooch checks, and puts in place what is right; what fetches for it is ours, because its own downloader neither resumes nor has a limit.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygpt.errors import DownloadFailed, InvalidInput
from tinygpt.storage.durable import read_digest


@dataclass(frozen=True)
class Download:
    """A file on the network that is known by its sha256.

    member      name of the file inside the zip archive that the address gives; empty where it gives the file itself
    labeled    True for rows, which `tinygpt.finetuning.labeled` and `tinygpt.finetuning.instructions` read; else a corpus
    """

    file_name: str
    url: str
    sha256: str
    source: str
    member: str = ""
    labeled: bool = False


DOWNLOADS = {
    "tinyshakespeare": Download(
        file_name="tinyshakespeare.txt",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        source="40,000 lines of Shakespeare's plays, collected for karpathy/char-rnn",
    ),
    "the-verdict": Download(
        file_name="the-verdict.txt",
        url="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
        sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        source="The Verdict, a short story by Edith Wharton (1908), from rasbt/LLMs-from-scratch",
    ),
    "sms-spam": Download(
        file_name="sms_spam.tsv",
        url="https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
        sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
        source="SMS Spam Collection, Almeida and Hidalgo 2011, UCI dataset 228, CC BY 4.0",
        member="SMSSpamCollection",
        labeled=True,
    ),
    "instructions": Download(
        file_name="instruction-data.json",
        url="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json",
        sha256="7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
        source="1,100 instructions and answers, from rasbt/LLMs-from-scratch, Apache-2.0",
        labeled=True,
    ),
}


MAX_DOWNLOAD_BYTES = 64 << 20  # the largest of DOWNLOADS is about a megabyte


def fetch(name: str, *, cache: str | Path | None = None) -> Path:
    """Path of a download from DOWNLOADS: in the folder named by TINYGPT_DATA, else in the cache, else fetched into the cache.

    Raises ValueError if a file is found whose sha256 is wrong, ConnectionError if none is found and the download fails.
    """
    download = DOWNLOADS[name]
    cache = Path(cache) if cache is not None else cache_folder()
    for folder in (os.environ.get("TINYGPT_DATA"), cache):
        if folder and (path := Path(folder, download.file_name)).is_file():
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != download.sha256:
                raise InvalidInput(f"{path}: sha256 {found}, expected {download.sha256}; delete it, or replace it by {download.url}")
            return path

    try:
        if download.member:
            return _fetch_member(download, cache)
        return download_file(download.url, cache / download.file_name, download.sha256, max_bytes=MAX_DOWNLOAD_BYTES)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:  # no network; or something else answered, and its sha256 is wrong
        raise DownloadFailed(
            f"corpus {name!r}: found nowhere and not downloaded ({type(error).__name__}), expected {download.url} "
            f"(sha256 {download.sha256}); put the file as {download.file_name} into {cache}, or into a folder named by TINYGPT_DATA"
        ) from error


def _fetch_member(download: Download, cache: Path) -> Path:
    """Fetches a zip archive and keeps the one file of it that is wanted, if its sha256 is right."""
    with tempfile.TemporaryDirectory() as folder:
        archive = download_file(download.url, Path(folder) / "archive.zip", max_bytes=MAX_DOWNLOAD_BYTES)
        # Nothing is extracted, so no name in the archive can lead outside; one member is read, and no more of it than is allowed.
        with zipfile.ZipFile(archive) as members, members.open(download.member) as member:
            content = member.read(MAX_DOWNLOAD_BYTES + 1)
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise InvalidInput(f"{download.member}: more than {MAX_DOWNLOAD_BYTES:,} bytes, expected at most that; the archive has changed")
    found = hashlib.sha256(content).hexdigest()
    if found != download.sha256:
        raise InvalidInput(f"{download.member}: sha256 {found}, expected {download.sha256}; the archive at {download.url} has changed")
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f".{download.file_name}.partial"
    partial.write_bytes(content)
    return partial.replace(cache / download.file_name)


_PIECE_BYTES = 1 << 18


_TIMEOUT_S = 30


_TRIES = 4


def download_file(url: str, path: Path, sha256: str = "", *, max_bytes: int = 1 << 30, wait_s: float = 1.0) -> Path:
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
            raise InvalidInput(f"{url}: sha256 {found}, expected {sha256}; something else answered, or the file has changed") from error
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
                raise DownloadFailed(f"{url}: {reason}, expected a download; check address and network, and try again") from error
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
            raise InvalidInput(f"{url}: {announced:,} bytes, expected at most {max_bytes:,}; is it the right address?")
        with part.open("ab" if have else "wb") as file:
            while piece := response.read(_PIECE_BYTES):
                have += len(piece)
                if have > max_bytes:
                    file.close()
                    part.unlink()
                    raise InvalidInput(f"{url}: more than {max_bytes:,} bytes, expected at most that; is it the right address?")
                file.write(piece)
    if announced is not None and have < announced:
        raise EOFError(f"broken off after {have:,} of {announced:,} bytes")
