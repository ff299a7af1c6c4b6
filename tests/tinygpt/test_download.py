"""Downloads from a server of our own: broken off, too large, changed."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pooch
import pytest

from tinygpt.data.download import download_file

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    breaks_after = len(CONTENT)
    announces = True
    asked: list = []  # noqa: RUF012

    def do_GET(self):
        Server.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        if self.announces:
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: self.breaks_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def url(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.asked, Server.breaks_after, Server.announces = [], len(CONTENT), True
    yield f"http://127.0.0.1:{server.server_port}/file"
    server.shutdown()
    server.server_close()


def test_a_download_makes_its_folder_and_leaves_nothing_else(tmp_path, url):
    path = download_file(url, tmp_path / "deep" / "x", SHA256)
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["x"]


def test_what_is_there_and_right_is_not_fetched_again_and_what_is_wrong_is(tmp_path, url):
    (tmp_path / "x").write_bytes(CONTENT)
    assert download_file(url, tmp_path / "x", SHA256) == tmp_path / "x" and Server.asked == []
    (tmp_path / "x").write_bytes(b"something else")
    assert download_file(url, tmp_path / "x", SHA256).read_bytes() == CONTENT and Server.asked == ["/file"]


@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["checked", "unchecked"])
def test_a_download_says_nothing_and_leaves_the_logger_as_it_was(tmp_path, url, monkeypatch, sha256):
    logger, said = pooch.get_logger(), []
    level = logger.level
    monkeypatch.setattr(logger, "handle", said.append)
    download_file(url, tmp_path / "x", sha256)
    assert said == [] and logger.level == level


def test_a_server_that_breaks_off_is_an_error_and_leaves_nothing(tmp_path, url):
    Server.breaks_after = 400_000
    for sha256 in (SHA256, ""):
        with pytest.raises(ConnectionError, match=r"file: ChunkedEncodingError, expected a download; check address and network, and try"):
            download_file(url, tmp_path / "x", sha256)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("announces", [True, False])
def test_too_much_is_refused(tmp_path, url, announces):
    Server.announces = announces
    with pytest.raises(ValueError, match=r"file: more bytes than expected; is it the right address"):
        download_file(url, tmp_path / "x", max_bytes=500_000)
    assert not list(tmp_path.iterdir())


def test_other_content_than_expected_is_refused_and_forgotten(tmp_path, url):
    with pytest.raises(ValueError, match=rf"{SHA256}.*expected sha256 {'0' * 64}; something else answered, or the file has changed"):
        download_file(url, tmp_path / "x", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_and_a_missing_server_are_said_at_once(tmp_path, url):
    with pytest.raises(ConnectionError, match=r"missing: Not Found, expected a download; check address and network"):
        download_file(url.replace("/file", "/missing"), tmp_path / "x")
    assert len(Server.asked) == 1
    with pytest.raises(ConnectionError, match=r"expected a download; check address and network, and try again"):
        download_file("http://127.0.0.1:9/nothing", tmp_path / "x")
