"""The chat page's web server, for this machine alone: Python's own, one page, a few requests in JSON, answers streamed line by line.

    with ChatServer(8000) as server:
        server.conversations.offer(Offer("docs", "runs/docs-001", model, tokenizer, template))
        server.serve()

It listens on 127.0.0.1, which other machines do not reach. What reaches it all the same is the browser, which runs the scripts of every page
that is open: so each request must name this server as its host (a name that an attacker's DNS points to 127.0.0.1 fails), and one that
changes something must be JSON from the page itself (`Origin`, `Sec-Fetch-Site`). Source  Jackson et al. 2007, "Protecting Browsers from DNS
Rebinding Attacks", section 5; RFC 6454 (Origin).
"""

import contextlib
import errno
import json
import os
import secrets
import select
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tinygpt.chat.sessions import SETTINGS, Conversations
from tinygpt.errors import InUse, InvalidInput, MissingFile, UserError
from tinygpt.storage.checked_json import Json, parse_json

HOST = "127.0.0.1"
MAX_BODY_BYTES = 1_000_000
_COMMAND = "python -m tinygpt chat RUN --page"
IDLE_S = 60.0  # a connection on which nothing moves for so long is closed
_ALL = {"settings", "turns"}
_ASKED = {
    "/api/reply": {"text", *_ALL},
    "/api/edit": {"text", "turn", *_ALL},
    "/api/regenerate": _ALL,
}  # requests for an answer: what they say


class ChatServer(ThreadingHTTPServer):
    """Answers requests, each in a thread of its own, until `shutdown`.

    port       0: any that is free; afterwards `server_port` is the one taken
    defaults   what the page's settings start with, by the names of `tinygpt.chat.sessions.SETTINGS`, and "system"
    command    what starts this server again, for the page to show
    Raises BlockingIOError, naming the next port that is free, if another program has this one.
    """

    daemon_threads = True  # Ctrl-C does not wait for an answer
    allow_reuse_address = os.name == "posix"  # there: a port that was just given up; on Windows: one that another program has

    def __init__(self, port: int = 8000, *, defaults: Mapping[str, Json] | None = None, command: str = _COMMAND) -> None:
        if not 0 <= port <= 65535:
            raise InvalidInput(f"port: {port}, expected 0 to 65535; 0 takes any that is free")
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            found = "is in use by another program" if error.errno == errno.EADDRINUSE else "is not for this user"
            raise InUse(f"port: {port} {found}, expected a free one; choose --port {next_free_port(port)}, which is free") from None
        self.conversations, self.defaults, self.command = Conversations(), defaults or {}, command
        names = [f"{name}:{self.server_port}" for name in (HOST, "localhost")]
        self.hosts = {*names, *(name.removesuffix(":80") for name in names)}  # browsers leave out the port of http
        self.template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def page(self, nonce: str) -> bytes:
        """The page; only scripts and styles with this nonce run in it. `<` in a text cannot end the script element that holds it."""
        data = {
            "models": [offer.shown() for offer in self.conversations.offers],
            "settings": [vars(setting) | {"value": self.defaults.get(setting.name, setting.value)} for setting in SETTINGS],
            "system": self.defaults.get("system", ""),
            "command": self.command,
        }
        text = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
        return self.template.replace("NONCE", nonce).replace(">DATA<", f">{text}<").encode("utf-8")

    def serve(self) -> None:
        """Says where the page is, and answers it until Ctrl-C."""
        print(f"page     {self.url}: open it in a browser on this machine; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            self.serve_forever()
        print("\nended: the conversations are forgotten", flush=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def next_free_port(port: int) -> int:
    """The first port above that nobody listens on; 0, any, if there is none."""
    for other in range(max(port, 1023) + 1, 65536):
        with contextlib.suppress(OSError), socket.socket() as test:
            if os.name == "posix":
                test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            test.bind((HOST, other))
            return other
    return 0


class _Refused(Exception):
    """A request that is answered with a code and a sentence."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One connection: GET / is the page, everything else a POST of a JSON object.

    /api/new {model}                               a new conversation, as `Conversation.state`
    /api/open {id}, /api/clear {id}                that conversation
    /api/stop {id}                                 ends the answer that is being made
    /api/reply {id, text}, /api/edit {id, turn, text}, /api/regenerate {id}     with settings and turns: an answer, an event per line
    An error is {"error": sentence}, with "gone": true for a conversation that the server no longer has.
    """

    server: ChatServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tinygpt", ""
    timeout = IDLE_S
    disable_nagle_algorithm = True  # a token is a small packet, and must not wait for the next one

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is for what matters."""

    def do_GET(self) -> None:
        with self._answered():
            self._check_host()
            if self.path.partition("?")[0] != "/":
                raise _Refused(HTTPStatus.NOT_FOUND, f"No such page: this server has one, at {self.server.url}")
            nonce = secrets.token_urlsafe(16)
            policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:"
            policy += "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page(nonce), {"Content-Security-Policy": policy})

    def do_POST(self) -> None:
        with self._answered():
            self._check_host()
            self._check_page()
            asked, conversations = self._body(), self.server.conversations
            if self.path == "/api/new":
                return self._send_json(HTTPStatus.OK, conversations.new(asked.get("model", 0)).state())
            if self.path not in ("/api/open", "/api/clear", "/api/stop", *_ASKED):
                raise _Refused(HTTPStatus.NOT_FOUND, f"{self.path}: no such request; reload the page")
            found = conversations.find(asked.get("id"))
            if self.path in ("/api/reply", "/api/edit", "/api/regenerate"):
                asked = {key: value for key, value in asked.items() if key in _ASKED[self.path]}
                with conversations.answer(found, asked) as events:
                    return self._stream(events)
            if self.path == "/api/stop":
                conversations.stop(found)
                return self._send_json(HTTPStatus.OK, {})
            if self.path == "/api/clear":
                conversations.unless_answering(found).clear()
            return self._send_json(HTTPStatus.OK, found.state())

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """Errors as an answer: those of users with their sentence, others with a traceback in the terminal."""
        try:
            yield
        except _Refused as error:
            self.close_connection = True  # its body may not have been read
            self._send_json(error.status, {"error": str(error)})
        except MissingFile as error:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": str(error), "gone": True})
        except InUse as error:
            self._send_json(HTTPStatus.CONFLICT, {"error": str(error)})
        except UserError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def _check_host(self) -> None:
        host = self.headers.get("Host", "")
        if host.lower() not in self.server.hosts:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, f"Host {host!r}: this server is {self.server.url}")

    def _check_page(self) -> None:
        """Only the page's own requests. Another site can send a form, but no JSON without being asked first, which this server never allows."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "same-origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self.server.hosts}:
            raise _Refused(HTTPStatus.FORBIDDEN, f"Origin {origin!r}: only the page at {self.server.url} may ask")
        if site not in ("same-origin", "none"):
            raise _Refused(HTTPStatus.FORBIDDEN, f"Sec-Fetch-Site {site!r}: only the page at {self.server.url} may ask")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type {kind!r}, expected application/json")

    def _body(self) -> dict[str, Json]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, f"Content-Length {length!r}, expected the number of bytes")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes, expected at most {MAX_BODY_BYTES:,}; shorten the text")
        try:
            text = self.rfile.read(int(length)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"request: byte {error.start} is not UTF-8, expected JSON in UTF-8; reload the page") from None
        found = parse_json(text, "request", "reload the page")
        if not isinstance(found, dict):
            raise InvalidInput(f"request: a JSON {type(found).__name__}, expected an object; reload the page")
        return found

    def _stream(self, events: Iterator[dict[str, Json]]) -> None:
        """An event per line, then the end of the connection. If the browser has closed it, the answer is not made any further."""
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self._headers({"Content-Type": "application/x-ndjson", "Connection": "close"})
        try:
            for event in events:
                if self._is_gone():
                    return
                self.wfile.write(_line(event))
        except (ConnectionError, TimeoutError):
            return
        except UserError as error:
            self.wfile.write(_line({"error": str(error)}))
        except Exception:
            traceback.print_exc()
            self.wfile.write(_line({"error": "The server met an error in its own code; its terminal shows where."}))

    def _is_gone(self) -> bool:
        """Whether the browser has closed the connection: what it sends after its request is nothing but the end."""
        with contextlib.suppress(BlockingIOError):
            return bool(select.select([self.connection], [], [], 0)[0]) and not self.connection.recv(1, socket.MSG_PEEK)
        return False

    def _send_json(self, status: HTTPStatus, value: dict[str, Json]) -> None:
        self._send(status, "application/json", _line(value), {})

    def _send(self, status: HTTPStatus, kind: str, body: bytes, more: dict[str, str]) -> None:
        self.send_response(status)
        close = {"Connection": "close"} if self.close_connection else {}
        self._headers({"Content-Type": kind, "Content-Length": str(len(body)), **close, **more})
        self.wfile.write(body)

    def _headers(self, more: dict[str, str]) -> None:
        always = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {**always, "Cross-Origin-Resource-Policy": "same-origin", **more}.items():
            self.send_header(name, value)
        self.end_headers()


def _line(value: dict[str, Json]) -> bytes:
    return (json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
