"""Pages with markup as text: WARC files of web pages, dumps of Wikipedia and of Stack Exchange.

HTML pages go through trafilatura, wikitext through mwparserfromhell; what these libraries leave is stated at each reader.
"""

import contextlib
import html.parser
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

from tinygpt.curate.records import BadRecord, Record, Report
from tinygpt.errors import MissingPackage
from tinygpt.storage.checked_json import Json

MAX_PAGE_BYTES = 8 << 20  # a longer page is no prose, and extraction takes time and memory with its length
NOT_ARTICLES = re.compile(r"\s*(file|image|category|media)\s*:", re.IGNORECASE)  # links that show a picture or sort the page
NOT_TEXT = frozenset("ref references gallery timeline math chem syntaxhighlight source score table".split())  # tags, {| among them


class Readable(Protocol):
    """What a parser needs of a file."""

    def read(self, size: int = -1, /) -> bytes: ...


def read_warc(file: Readable, path: Path, report: Report) -> Iterator[Record]:
    """Pages that were answered with status 200, their main text without menus and footers; of WET files the text as it is.

    Raises ImportError, naming the extra, without warcio and trafilatura; EOFError or an error of warcio for a damaged archive.
    """
    try:
        import trafilatura
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise MissingPackage(f'{path}: {error.name} is missing, expected it for WARC files; pip install "tinygpt[curate-web]"') from error
    number = 0
    try:
        for number, entry in enumerate(ArchiveIterator(file), start=1):
            is_text = entry.rec_type == "conversion"
            if not is_text and not (entry.rec_type == "response" and entry.http_headers and entry.http_headers.get_statuscode() == "200"):
                continue
            content_type = (entry.http_headers or entry.rec_headers).get_header("Content-Type") or ""
            if not is_text and "html" not in content_type:
                continue
            data = entry.content_stream().read(MAX_PAGE_BYTES + 1)
            if len(data) > MAX_PAGE_BYTES:
                rule = f"expected at most {MAX_PAGE_BYTES:,}; it is left out"
                report(BadRecord("page too long", f"{path}: record {number}: more than {MAX_PAGE_BYTES:,} bytes, {rule}"))
                continue
            if left := getattr(entry.raw_stream, "limit", 0):
                raise EOFError(f"record {number} ends {left} bytes early")
            page = _decoded(data, content_type)
            text = page if is_text else trafilatura.extract(page, favor_precision=True, include_comments=False, include_images=False)
            fields = {"url": entry.rec_headers.get_header("WARC-Target-URI"), "date": entry.rec_headers.get_header("WARC-Date")}
            yield Record(f"record {number}", {"text": text or "", **fields})
    except ArchiveLoadFailed as error:
        raise BadRecord("damaged file", f"{path}: {error}, expected WARC; {number} records were read before; restore it") from error


def _decoded(data: bytes, content_type: str) -> str | bytes:
    """A page in the encoding that its header names; else the bytes, in which trafilatura looks for one."""
    named = re.search(r"charset=[\"']?([\w.:-]+)", content_type)
    try:
        return data.decode(named[1] if named else "utf-8")
    except (UnicodeDecodeError, LookupError):
        return data


def read_wikipedia(file: Readable, path: Path, report: Report) -> Iterator[Record]:
    """Articles of a dump `pages-articles.xml`: namespace 0, no redirects; templates, references, tables, pictures, formulas, listings and
    categories are left out. So what only a template would write is missing: numbers with units, many dates, pronunciations. Raises ImportError, naming the extra, without mwparserfromhell.
    """
    try:
        import mwparserfromhell
    except ImportError as error:
        raise MissingPackage(f'{path}: mwparserfromhell is missing, expected it for wikitext; pip install "tinygpt[curate-web]"') from error
    for number, page in enumerate(_elements(file, path, "page"), start=1):
        values = {element.tag.rpartition("}")[2]: element.text or "" for element in page.iter()}
        is_redirect = any(element.tag.endswith("}redirect") for element in page)
        if values.get("ns") == "0" and not is_redirect:
            ids = [element.text for element in page if element.tag.endswith("}id")]
            text = _plain(mwparserfromhell.parse(re.sub(r"(?m)^[*#]+ *", "- ", values.get("text", ""))))  # marks of lists would be lost
            yield Record(f"page {number}", {"text": text, "title": values.get("title", ""), "page": ids[0] if ids else ""})


def _plain(code: Json) -> str:
    """The text of an article's wikicode, which is changed."""
    links = code.filter_wikilinks(matches=lambda link: NOT_ARTICLES.match(str(link.title)) is not None)
    for node in links + code.filter_tags(matches=lambda tag: str(tag.tag).strip().lower() in NOT_TEXT):
        with contextlib.suppress(ValueError):  # it stood within one that is gone
            code.remove(node)
    text = code.strip_code(normalize=True, collapse=True)
    text = re.sub(r"\( *[,;]? *\)", "", text)  # what a template leaves: "Kyoto ( ) is"
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() for line in text.split("\n"))).strip()


def read_posts(file: Readable, path: Path, report: Report) -> Iterator[Record]:
    """Questions and answers of a `Posts.xml`, a document each. What belongs to one question is a group, which the split never divides.

    The dumps come as 7z archives, which have to be unpacked.
    """
    kinds = {"1": "question", "2": "answer"}
    for row in _elements(file, path, "row"):
        if row.get("PostTypeId") in kinds and row.get("Body"):
            title, text = row.get("Title", ""), text_of_html(row.get("Body", ""))
            number = row.get("Id", "")
            fields = {
                "text": f"{title}\n\n{text}" if title else text, "title": title, "post": kinds[row.get("PostTypeId", "")],
                "group": f"question {row.get('ParentId') or number}", "score": int(row.get("Score", "0")), "date": row.get("CreationDate", ""),
                "license": row.get("ContentLicense", ""),
            }  # fmt: skip
            yield Record(f"post {number}", fields)


def _elements(file: Readable, path: Path, name: str) -> Iterator[ElementTree.Element]:
    """Elements of that name right below the root, one in memory at a time."""
    depth, root = 0, None
    try:
        for event, element in ElementTree.iterparse(file, ("start", "end")):
            depth += 1 if event == "start" else -1
            root = element if root is None else root
            if event == "end" and depth == 1:
                if element.tag.rpartition("}")[2] == name:
                    yield element
                root.clear()
    except ElementTree.ParseError as error:
        raise BadRecord("damaged file", f"{path}: {error}, expected XML; restore it, or unpack it again") from error


class _Text(html.parser.HTMLParser):
    """Collects text; a block begins a line, a paragraph or code a blank one."""

    BLOCKS = frozenset("p pre blockquote ul ol h1 h2 h3 h4 hr table".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.parts += {"li": ["\n- "], "br": ["\n"], "tr": ["\n"], "td": [" "]}.get(tag, ["\n\n"] if tag in self.BLOCKS else [])

    def handle_endtag(self, tag: str) -> None:
        self.parts += ["\n\n"] if tag in self.BLOCKS else []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def text_of_html(fragment: str) -> str:
    """The text of simple HTML as users write it in posts; code keeps its lines."""
    parser = _Text()
    parser.feed(fragment)
    parser.close()
    return re.sub(r"[ \t]*\n(\s*\n)+", "\n\n", "".join(parser.parts)).strip()
