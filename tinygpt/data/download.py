"""Downloads that can be trusted: fetched by pooch, checked by sha256, complete or absent, and never larger than expected."""

import hashlib
import logging
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tinygpt.errors import DownloadFailed, InvalidInput
from tinygpt.storage.durable import replace_file


@dataclass(frozen=True)
class Download:
    """A file on the network that is known by its sha256."""

    file_name: str
    url: str
    sha256: str
    source: str
    member: str = ""  # name of the file inside the zip archive that the address gives; empty where it gives the file itself
    labeled: bool = False  # rows, which `tinygpt.finetuning.labeled` and `tinygpt.finetuning.instructions` read; else a corpus


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
            if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != download.sha256:
                raise InvalidInput(f"{path}: sha256 {found}, expected {download.sha256}; delete it, or replace it by {download.url}")
            return path
    try:
        if download.member:
            return _fetch_member(download, cache)
        return download_file(download.url, cache / download.file_name, download.sha256, max_bytes=MAX_DOWNLOAD_BYTES)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:  # no network; or something else answered, and its sha256 is wrong
        rule = f"expected {download.url} (sha256 {download.sha256})"
        fix = f"put the file as {download.file_name} into {cache}, or into a folder named by TINYGPT_DATA"
        raise DownloadFailed(f"corpus {name!r}: found nowhere and not downloaded ({type(error).__name__}), {rule}; {fix}") from error


def _fetch_member(download: Download, cache: Path) -> Path:
    """Fetches a zip archive and keeps the one file of it that is wanted, if its sha256 is right."""
    with tempfile.TemporaryDirectory() as folder:
        archive = download_file(download.url, Path(folder) / "archive.zip", max_bytes=MAX_DOWNLOAD_BYTES)
        # Nothing is extracted, so no name in the archive can lead outside; one member is read, and no more of it than is allowed.
        with zipfile.ZipFile(archive) as members, members.open(download.member) as member:
            content = member.read(MAX_DOWNLOAD_BYTES + 1)
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise InvalidInput(f"{download.member}: more than {MAX_DOWNLOAD_BYTES:,} bytes, expected at most that; the archive has changed")
    if (found := hashlib.sha256(content).hexdigest()) != download.sha256:
        raise InvalidInput(f"{download.member}: sha256 {found}, expected {download.sha256}; the archive at {download.url} has changed")
    cache.mkdir(parents=True, exist_ok=True)
    replace_file(cache / download.file_name, content)
    return cache / download.file_name


def download_file(url: str, path: Path, sha256: str = "", *, max_bytes: int = 1 << 30) -> Path:
    """Fetches a file to `path` with pooch; what is there already, and right, is not fetched again.

    sha256      in hex; empty: not checked (of an archive whose members are checked one by one)
    max_bytes   refuse more than this
    Raises ConnectionError if the server cannot be reached or breaks off, ValueError for too much or other content.
    """
    import pooch  # here, because only a download needs them
    import requests

    def fetch(url: str, output_file: str, _: object) -> None:
        """A downloader as Pooch calls it."""
        with requests.get(url, timeout=30, stream=True) as response, Path(output_file).open("wb") as file:
            response.raise_for_status()
            for data in response.iter_content(1 << 16):
                if file.tell() + len(data) > max_bytes:
                    raise InvalidInput(f"{url}: more bytes than expected; is it the right address?")
                file.write(data)

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # a download is reported by whoever asks for it
    try:
        pooch.retrieve(url, known_hash=sha256 or None, fname=path.name, path=path.parent, downloader=fetch)
    except requests.RequestException as error:
        reason = type(error).__name__ if error.response is None else error.response.reason
        raise DownloadFailed(f"{url}: {reason}, expected a download; check address and network, and try again") from error
    except InvalidInput:
        raise
    except ValueError as error:  # Pooch's, of another hash
        raise InvalidInput(f"{url}: {error}, expected sha256 {sha256}; something else answered, or the file has changed") from error
    finally:
        logger.setLevel(level)
    return path


def cache_folder() -> Path:
    """Where tinygpt keeps what it can fetch or make again: TINYGPT_CACHE, else the user's cache folder of this system."""
    if folder := os.environ.get("TINYGPT_CACHE"):
        return Path(folder)
    import pooch  # knows where caches belong on each system

    return Path(pooch.os_cache("tinygpt"))
