r"""Personal data and secrets in text, replaced by marks such as <EMAIL>: expressions with checksums where the format has one.

    redact("Write to anna@example.org or call 030 1234567.").text       # Write to <EMAIL> or call <PHONE>.
    find("IBAN DE44 5001 0517 5407 3249 31")                            # [Found(start=5, end=32, kind="iban")]
    Redact(kinds=("email", "phone"))                                    # the step

email   as on the web (HTML's definition, with Latin letters of other languages and without & / = ? ` { | }); not quoted, not spelled out ("anna at example dot org")
phone   with +country code (E.164); North American 3-3-4; with a leading 0 and 10 digits or more (Germany, France, Britain, Japan, ...);
        any 7 to 15 digits after a word such as "phone", "Telefon", "appelez", "電話". Not full-width digits
card    12 to 19 digits of the ranges of the card networks, checked by Luhn's sum (ISO/IEC 7812-1, annex B)
iban    of the countries of the SWIFT registry, with its length and its remainder of 97 (ISO 13616, ISO 7064)
ip      public IPv4 and IPv6 addresses. Those that belong to nobody are kept: private, loopback, documentation (192.0.2.1, 2001:db8::1) and all
        others that `ipaddress` does not call global. Four small numbers (1.0.0.1) are a version, unless the words around say address
key     secrets by the form that their service documents, see `_KEYS`; JSON Web Tokens; blocks of private keys; passwords in URLs
user    the name in a home path: /home/NAME, /Users/NAME, C:\Users\NAME, /mnt/c/Users/NAME; not names such as "user" and "runner"

Names of people are not covered, nor are postal addresses, dates of birth, or numbers of passports and insurances: that takes a model of names,
and no expression finds them. Redacted text is not anonymous text: what is left may still say who is meant.

phonenumbers, the library for this, takes 48 MB and asks for a country; the numbers that people write without one are the point here.
"""

import functools
import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tinygpt.curate.documents import Document, Outcome
from tinygpt.errors import InvalidInput, MissingFile, did_you_mean
from tinygpt.storage.checked_json import Json

KINDS = ("key", "email", "user", "iban", "card", "ip", "phone")
"""In the order in which they are looked for: of two that overlap, the earlier one is taken."""


class Found(NamedTuple):
    """Characters start to end of a text, and what they are."""

    start: int
    end: int
    kind: str


class Redacted(NamedTuple):
    """The text with marks, and how many of each kind there are."""

    text: str
    counts: dict[str, int]


# All but keys has one of these in it; keys begin with words of their own, see `_TOKEN_SIGNS`.
_ANYTHING = re.compile(r"[0-9@/\\]")
_BEFORE, _AFTER = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"  # ASCII: Japanese has no blanks between a word and a number


def find(text: str, kinds: Sequence[str] = KINDS) -> list[Found]:
    """Personal data in a text, from left to right, none inside another. Raises ValueError for an unknown kind."""
    _check(kinds)
    found: list[Found] = []
    taken = bytearray(len(text))
    possible = KINDS if _ANYTHING.search(text) else ("key",)
    for kind in (kind for kind in possible if kind in kinds):
        for start, end in _FINDERS[kind](text):
            if start < end and taken.find(1, start, end) < 0:
                found.append(Found(start, end, kind))
                taken[start:end] = b"\1" * (end - start)
    return sorted(found)


def _check(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in _FINDERS:
            raise InvalidInput(f"redact: kind {kind!r}, expected one of {', '.join(KINDS)}; {did_you_mean(kind, KINDS)}")


def redact(text: str, kinds: Sequence[str] = KINDS, key: bytes = b"") -> Redacted:
    """The text with <EMAIL> and the like instead of what `find` finds; redacting it again changes nothing.

    key     with one, marks are stable: <EMAIL_1f2e3d4c>, 32 bits of HMAC-SHA256 of the value (lower case, without blanks and signs), so that
            one value has one mark wherever it occurs. Who has the key can try values, and there are few phone numbers; without it one cannot.
            But occurrences can be linked, and what the texts around them say together may tell who it is.
    """
    counts: dict[str, int] = {}
    while found := find(text, kinds):  # again: a mark is shorter than its value, and so brings words nearer to what follows it
        parts, at = [], 0
        for start, end, kind in found:
            counts[kind] = counts.get(kind, 0) + 1
            parts += [text[at:start], _mark(kind, text[start:end], key)]
            at = end
        text = "".join([*parts, text[at:]])
    return Redacted(text, counts)


def _mark(kind: str, value: str, key: bytes) -> str:
    if not key:
        return f"<{kind.upper()}>"
    plain = value.casefold() if kind in ("email", "key", "user") else re.sub(r"[^0-9a-z]", "", value.casefold())
    return f"<{kind.upper()}_{_digest(f'{kind} {plain}', key)}>"


def _digest(value: str, key: bytes) -> str:
    return hmac.new(key, value.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:8]


@dataclass(frozen=True)
class Redact:
    """The step: replaces personal data in the text, the metadata (names of fields, too) and the id, which then ends in 32 bits of its HMAC-SHA256
    under the key, so that it stays unique.

    kinds      which, of `KINDS`
    key_file   for stable marks: a file with a secret, made by `make_key` and kept apart from the output; "" for plain marks
    Raises ValueError for an unknown kind.
    """

    kinds: tuple[str, ...] = KINDS
    key_file: str = ""
    name: str = "privacy"

    def __post_init__(self) -> None:
        _check(self.kinds)

    def settings(self) -> dict[str, Json]:
        """The key itself stays out of it: a hash of its 32 random bytes tells keys apart and nothing else."""
        key = hashlib.sha256(_key(self.key_file)).hexdigest()[:16] if self.key_file else ""
        return {"kinds": list(self.kinds), "key": key}

    def __call__(self, document: Document) -> Outcome:
        key = _key(self.key_file) if self.key_file else b""
        text, counts = redact(document.text, self.kinds, key)
        total = dict(counts)

        def clean(value: Json) -> Json:
            if isinstance(value, str):
                value, counts = redact(value, self.kinds, key)
                for kind, n in counts.items():
                    total[kind] = total.get(kind, 0) + n
            elif isinstance(value, list):
                value = [clean(each) for each in value]
            elif isinstance(value, Mapping):
                value = {clean(name): clean(each) for name, each in value.items()}
            return value

        id, metadata = clean(document.id), clean(document.metadata)
        if id != document.id:
            id += f"-{_digest(f'id {document.id}', key)}"
        return Outcome(replace(document, id=id, text=text, metadata=metadata) if total else document, counts=total)


def make_key(path: str | Path) -> None:
    """Writes a new secret for stable marks, for the owner's eyes only. Raises FileExistsError if the file is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(os.urandom(32).hex() + "\n")


@functools.lru_cache(maxsize=4)
def _key(path: str) -> bytes:
    if not Path(path).is_file():
        raise MissingFile(f"{path}: no such file, expected the secret of stable marks; make one with tinygpt.curate.privacy.make_key")
    text = Path(path).read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise InvalidInput(f"{path}: no key, expected 64 hexadecimal digits; make one with tinygpt.curate.privacy.make_key")
    return bytes.fromhex(text)


Spans = Iterator[tuple[int, int]]

# Keys and tokens ---------------------------------------------------------------------------------------------------------------

_KEYS = [
    r"A(?:KIA|SIA)[A-Z0-9]{16}",  # AWS IAM user guide, "unique identifiers": access keys, long-term and temporary
    r"gh[pousr]_[A-Za-z0-9_]{36,255}",  # GitHub, "Behind GitHub's new authentication token formats", 2021
    r"github_pat_[A-Za-z0-9_]{22,255}",  # GitHub docs, "Managing your personal access tokens"
    r"glpat-[A-Za-z0-9_\-.]{20,300}",  # GitLab docs, "Token overview", prefixes
    r"AIza[A-Za-z0-9_\-]{35}",  # Google Cloud API keys
    r"GOCSPX-[A-Za-z0-9_\-]{28}",  # Google OAuth client secrets
    r"ya29\.[A-Za-z0-9_\-.]{20,2000}",  # Google OAuth access tokens
    r"xox[abeoprs]-[A-Za-z0-9\-]{10,250}",  # Slack docs, "Tokens"
    r"xapp-[A-Za-z0-9\-]{10,250}",
    r"(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{10,250}",  # Stripe docs, "API keys"; publishable ones (pk_) are no secret
    r"whsec_[A-Za-z0-9+/]{24,250}=*",  # Stripe docs, "Webhooks"
    r"sk-(?=[A-Za-z_\-]{0,40}[0-9][A-Za-z_\-]{0,40}[0-9])[A-Za-z0-9_\-]{20,250}",  # OpenAI and those who took its form (sk-ant-, sk-or-)
    r"hf_[A-Za-z]{34}",  # Hugging Face user access tokens
    r"eyJ[A-Za-z0-9_\-]{8,2000}\.eyJ[A-Za-z0-9_\-]{8,4000}\.[A-Za-z0-9_\-]{8,2000}",  # RFC 7519: header and claims are JSON objects, in base64url
]
_TOKEN = re.compile(rf"{_BEFORE}(?:{'|'.join(_KEYS)}){_AFTER}")
_TOKEN_SIGNS = (
    "AKIA",
    "ASIA",
    "gh",
    "github_pat_",
    "glpat-",
    "AIza",
    "GOCSPX-",
    "ya29.",
    "xox",
    "xapp-",
    "k_live_",
    "k_test_",
    "whsec_",
    "sk-",
    "hf_",
    "eyJ",
)
_SLACK_HOOK = re.compile(r"(?<=hooks\.slack\.com/services/)T[A-Z0-9]+/B[A-Z0-9]+/[A-Za-z0-9]+")
_AWS_SECRET = re.compile(r"(?i:secret[ _\-]?(?:access[ _\-]?)?key)[\"']?\s{0,3}[:=]{1,2}\s{0,3}[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])")
# RFC 7468, and OpenPGP's armor (RFC 9580): to the last line, or as far as it looks like base64 where that is missing.
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<what>(?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?)-----(?:(?s:.{0,20000}?)-----END (?P=what)-----|\s*(?:[A-Za-z-]+: .*\n)*[A-Za-z0-9+/=\s\\]*)"
)
_URL_PASSWORD = re.compile(r"(?<=://)[^\s/:@<>\"'{}]{1,100}:[^\s/@<>\"'{}]{1,200}(?=@[A-Za-z0-9\[])")  # RFC 3986, 3.2.1: user:password@host


def _keys(text: str) -> Spans:
    if any(sign in text for sign in _TOKEN_SIGNS):
        yield from (m.span() for m in _TOKEN.finditer(text))
    if "PRIVATE KEY" in text:
        yield from (m.span() for m in _PRIVATE_KEY.finditer(text))
    if "://" in text:
        yield from (m.span() for m in _URL_PASSWORD.finditer(text))
        yield from (m.span() for m in _SLACK_HOOK.finditer(text))
    if "ecret" in text or "ECRET" in text:
        yield from (m.span(1) for m in _AWS_SECRET.finditer(text))


# E-mail ------------------------------------------------------------------------------------------------------------------------

_LATIN = "A-Za-z0-9\u00c0-\u024f"
_EMAIL = re.compile(
    rf"(?<![{_LATIN}])(?P<local>[{_LATIN}_](?:[{_LATIN}.!#$%'*+^_~\-]{{0,62}}[{_LATIN}_+\-])?)@"
    rf"(?P<domain>(?:[{_LATIN}](?:[{_LATIN}\-]{{0,61}}[{_LATIN}])?\.)+)(?P<top>xn--[A-Za-z0-9\-]{{2,59}}|[A-Za-z]{{2,24}})(?![{_LATIN}_])"
)
_FILES = frozenset(
    "py sh c h cpp png jpg jpeg gif svg webp ico bmp css js mjs ts tsx jsx json html htm php txt md xml pdf tgz gz whl so dll exe".split()
)
_TOPS = frozenset(
    "com org net edu gov mil int info biz name pro io co ai dev app me us uk de fr jp eu ch at it es nl be se no dk fi pl".split()
)


def _emails(text: str) -> Spans:
    if "@" in text:
        for m in _EMAIL.finditer(text):
            labels, top = m["domain"][:-1].split("."), m["top"]
            file = top.lower() in _FILES and re.match(r"[0-9]x?$", labels[-1]) is not None  # icon@2x.png
            called = text[m.end() : m.end() + 1] in ("(", "[")  # hidden@weights.sum(0)
            product = called or len(m["local"]) == 1 or "self" in labels or len(labels[-1]) == 1  # x@w.grad is a matrix product
            if not (file or (product and top.lower() not in _TOPS) or _is_git(text, m)):
                yield m.span()


def _is_git(text: str, m: re.Match[str]) -> bool:
    return m["local"] == "git" and (text[m.end() : m.end() + 1] == ":" or text[: m.start()].endswith("://"))


# Home paths --------------------------------------------------------------------------------------------------------------------

_NAME = rf"[{_LATIN}._\-]*[{_LATIN}_\-]"
_HOME = re.compile(
    rf"(?:(?<![A-Za-z0-9_.~\-])(?:/mnt/[a-z])?/(?:home|Users|export/home)/(?P<unix>{_NAME})"
    rf"|{_BEFORE}[A-Za-z]:(?:\\{{1,2}}|/)[Uu]sers(?:\\{{1,2}}|/)(?P<windows>{_NAME}(?:(?: {_NAME}){{0,2}}(?=\\))?))"
)
_NOBODY = frozenset(
    "user users username user_name your_username yourname your-name you me myuser name runner runneradmin ubuntu root admin administrator "
    "public default shared guest vagrant docker node jovyan vscode codespace circleci travis jenkins ec2-user pi test app .. . ...".split()
)


def _users(text: str) -> Spans:
    if "/" in text or "\\" in text:
        for m in _HOME.finditer(text):
            name = "unix" if m["unix"] else "windows"
            if m[name].casefold().strip(".") not in _NOBODY and m[name].rpartition(".")[2] not in _FILES:
                yield m.span(name)


# Bank accounts -----------------------------------------------------------------------------------------------------------------

# Characters of an IBAN, by country: SWIFT, "IBAN Registry" (ISO 13616-1).
_IBAN_LENGTHS = {
    country: int(length)
    for row in """15 NO|16 BE|18 DK FI FO FK GL NL SD|19 MK SI|20 AT BA EE KZ LT LU MN XK|21 CH HR LI LV
22 BG BH CR DE GB GE IE ME RS VA|23 AE GI IL IQ OM SO TL|24 AD CZ ES MD PK RO SA SE SK TN VG|25 LY PT ST|26 IS TR|27 BI DJ FR GR IT MC MR SM
28 AL AZ BY CY DO GT HN HU LB NI PL SV|29 BR EG PS QA UA|30 JO KW MU YE|31 MT SC|32 LC|33 RU""".replace("\n", "|").split("|")
    for length, *countries in [row.split()]
    for country in countries
}
_IBAN = {
    n: re.compile(rf"[A-Z]{{2}}[0-9]{{2}}(?:[ \u00a0\-]?[A-Z0-9]){{{n - 4}}}{_AFTER}", re.IGNORECASE | re.ASCII)
    for n in set(_IBAN_LENGTHS.values())
}
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ \u00a0\-]?[A-Za-z0-9])")


def is_iban(value: str) -> bool:
    """True if letters and digits of `value` are an IBAN: the length of its country, and remainder 1 of 97 (ISO 7064, MOD 97-10)."""
    plain = re.sub(r"[^0-9A-Z]", "", value.upper())
    if len(plain) != _IBAN_LENGTHS.get(plain[:2]):
        return False
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _ibans(text: str) -> Spans:
    for m in _IBAN_START.finditer(text):
        length = _IBAN_LENGTHS.get(m[0][:2].upper())
        if length and (all_of_it := _IBAN[length].match(text, m.start())) and is_iban(all_of_it[0]):
            yield all_of_it.span()


# Cards -------------------------------------------------------------------------------------------------------------------------

# Bare, or in groups as they are printed: 4-4-4-4 and its like, 4-6-5 (American Express), 4-6-4 (Diners Club). Tried at every start, because
# another number may stand before it.
_CARD = re.compile(
    rf"(?<![A-Za-z0-9_])(?<![0-9][.,])(?=((?:[0-6][0-9]{{11,18}}|(?:[1-6][0-9]{{3}}|0604)(?P<sign>[ \u00a0\-.])[0-9]{{4}}(?P=sign)[0-9]{{4}}(?:(?P=sign)[0-9]{{1,4}}){{0,2}}"
    rf"|3[0-9]{{3}}(?P<other>[ \u00a0\-.])[0-9]{{6}}(?P=other)[0-9]{{4,5}}){_AFTER}))"
)
# First digits and lengths: the networks' ranges, as ISO/IEC 7812's issuer identification numbers have been given out.
_NETWORKS = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|(?:30[0-5]|309|36[0-9]|3[89][0-9])[0-9]{11,16}"  # Diners Club
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2}|62[0-9]{2})[0-9]{12,15}"  # Discover, UnionPay
    r"|35[0-9]{14,17}|(?:2131|1800)[0-9]{11}"  # JCB
    r"|(?:5[0678]|6[0-9])[0-9]{10,17}|0604[0-9]{8}"  # Maestro
)


def luhn(digits: str) -> bool:
    """True if the sum of the digits, every second one from the right doubled and its own digits added, ends in 0."""
    total = 0
    for i, digit in enumerate(reversed(digits)):
        total += int(digit) if i % 2 == 0 else (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[int(digit)]
    return total % 10 == 0


def is_card(value: str) -> bool:
    """True if the digits of `value` are a card's: a network's first digits and length, and Luhn's sum."""
    digits = re.sub(r"[^0-9]", "", value)
    return _NETWORKS.fullmatch(digits) is not None and luhn(digits)


def _cards(text: str) -> Spans:
    end = 0
    for m in _CARD.finditer(text):
        value = m[1]
        while not is_card(value) and m["sign"] and value.count(m["sign"]) > 2:  # what follows it may be another number
            value = value.rpartition(m["sign"])[0]
        if m.start() >= end and is_card(value):
            end = m.start() + len(value)
            yield m.start(), end


# Addresses on the internet -----------------------------------------------------------------------------------------------------

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![A-Za-z0-9_.\-+~=])(?:{_OCTET}\.){{3}}{_OCTET}(?![A-Za-z0-9_]|[.\-+][A-Za-z0-9])")
_IPV6 = re.compile(r"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){0,6}(?![A-Za-z0-9_:])")
_SAYS_VERSION = re.compile(
    r"(?:\bv|\bver\.?|[Vv]ersions?|[Rr]elease[sd]?|\brev\.?|[Uu]pdated? to|[Uu]pgraded? to|\bOID|==|>=|<=|~=|<|>)\s{0,2}$"
)
_SAYS_ADDRESS = re.compile(
    r"(?i)(?:\bIP(?:v4)?\b|address|adresse?|アドレス|host|server|\bdns\b|gateway|\bping\b|proxy|://|\bssh\b|@)[^0-9\n<>]{0,20}$"
)
_SMALL = 32  # four numbers below this are more often a version than an address


def _ips(text: str) -> Spans:
    for m in _IPV4.finditer(text) if text.count(".") >= 3 else ():
        before, after = text[max(0, m.start() - 30) : m.start()], text[m.end() : m.end() + 2]
        small = all(int(part) < _SMALL for part in m[0].split("."))
        says = _SAYS_ADDRESS.search(before) is not None or (after[:1] in ("/", ":") and after[1:].isdecimal())
        if not _SAYS_VERSION.search(before) and (says or not small) and ipaddress.IPv4Address(m[0]).is_global:
            yield m.span()
    for m in _IPV6.finditer(text) if text.count(":") >= 2 else ():
        groups = [group for group in m[0].split(":") if group]
        # Complete, and no list of bytes (00:1b:44:11:3a:b7:00:00); or shortened, in the range in use (2000::/3), and no slice (x[2000::2]).
        usual = (
            len(groups) == 8 and max(map(len, groups)) > 2
            if "::" not in m[0]
            else len(groups) > 2 and m[0][0] in "23" and len(groups[0]) == 4
        )
        if usual and _is_global(m[0]):
            yield m.span()


def _is_global(address: str) -> bool:
    try:
        return ipaddress.IPv6Address(address).is_global
    except ValueError:
        return False


# Phones ------------------------------------------------------------------------------------------------------------------------

# Country codes: ITU-T E.164, list of assigned codes.
_COUNTRY = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-69][0-9]|3[578][0-9]|42[0-9]|50[0-9]|59[0-9]|6[789][0-9]|8[058][0-9]|9[679][0-9]"
)
_EXTENSION = r"(?:[ ]?(?:x|ext\.?|#|App\.?|poste)[ ]?[0-9]{1,6})?"
_END = rf"{_EXTENSION}(?![A-Za-z0-9_]|[.,:][0-9])"
_SIGN = r"[ .\-/()\u00a0\u2010\u2011]"
_INTERNATIONAL = re.compile(
    rf"(?:(?<![A-Za-z0-9_+.)\]])\+|(?<![A-Za-z0-9_+.,:)\]/\-])00)(?P<number>[1-9](?:{_SIGN}{{0,3}}[0-9]){{6,14}}){_END}"
)
_AMERICAN = re.compile(
    rf"(?<![A-Za-z0-9_.,+\-/])(?:(?:001|1)[ .\-])?(?:\([2-9][0-9]{{2}}\)[ .\-]?|[2-9][0-9]{{2}}(?P<sign>[ .\-]))[2-9][0-9]{{2}}"
    rf"(?(sign)(?P=sign)|[ .\-]?)[0-9]{{4}}(?![.\-][0-9]){_END}"
)
_TRUNK = re.compile(
    rf"(?<![A-Za-z0-9_.,+\-/])(?:\(0[1-9][0-9]{{0,4}}\)[ .\-/]{{0,2}}|0[1-9][0-9]{{0,4}}[ .\-/\u00a0]{{1,3}})[0-9]{{2,}}(?:[ .\-/\u00a0][0-9]{{2,}}){{0,4}}"
    rf"(?![.\-/][0-9]){_END}"
)
_BARE = re.compile(rf"(?<![A-Za-z0-9_.,+\-/])0(?:[1-9][0-9]{{8,9}}|1[567][0-9]{{9}}){_AFTER}(?![.,:\-/][0-9])")
_TWO_FOUR_FOUR = re.compile(rf"(?<![A-Za-z0-9_.,+\-/])[1-9][0-9]-[0-9]{{4}}-[0-9]{{4}}(?![.\-/][0-9]){_END}")  # Japan's, without the 0
_WORDS = (
    r"tele?phones?|phones?|telefon(?:nummer|isch)?|téléphones?|tel(?:é|e)fono|tel|tél|telefax|fax|mobile|mobil|móvil|cell(?:phone)?|handy(?:nummer)?|"
    r"rufnummer|durchwahl|hotline|portable|whatsapp|sms|(?:call(?:ed|ing)?|ring|dial|text)(?: (?:me|us|him|her|them|back|now|at|on)){1,2}|dial|"
    r"anruf(?:en)?|(?:appel(?:er|ez|le)?|joindre|joignable|rappel(?:er|ez)?)"
)
_SAYS_PHONE = re.compile(rf"(?i:(?<![A-Za-z])(?:{_WORDS})(?![A-Za-z])|電話(?:番号)?|携帯(?:番号)?)[^0-9\n+<>;]{{0,24}}$")
_ANY = re.compile(rf"(?<![A-Za-z0-9_.,])\(?[0-9](?:[ .\-/()\u00a0]{{0,3}}[0-9]){{6,14}}{_END}")
_SAYS_BOOK = re.compile(r"(?i)ISBN[^0-9]{0,12}$")
_COUNTING = "01234567890123 0987654321098"
_DECIMAL = re.compile(r"[0-9]+\.[0-9]+")
_DATE = re.compile(r"[0-9]{1,2}([./\-])[0-9]{1,2}\1[0-9]{4}|(?:19|20)[0-9]{2}([./\-]?)(?:0[1-9]|1[0-2])\2(?:0[1-9]|[12][0-9]|3[01])")


def _is_international(number: str) -> bool:
    """A number without its + or 00: an assigned country code, 8 digits or more, in North America 11; no decimal number with a sign."""
    digits = re.sub(r"[^0-9]", "", number)
    complete = len(digits) == 11 and digits[1] > "1" if digits[0] == "1" else len(digits) >= 8
    return complete and _COUNTRY.match(digits) is not None and not _DECIMAL.fullmatch(number)


def _is_national(number: str, before: str) -> bool:
    """A number with a leading 0: 10 to 12 digits (9 where the area code is in parentheses), no date, decimal number, row of digits or ISBN."""
    digits = re.sub(r"[^0-9]", "", re.split(r"[A-Za-z#]", number)[0])  # without an extension
    complete = 10 <= len(digits) <= 12 or (len(digits) == 9 and number[0] == "(")
    usual = not _DATE.match(number) and not _DECIMAL.fullmatch(number) and digits not in _COUNTING
    return complete and usual and not _SAYS_BOOK.search(before)


def _phones(text: str) -> Spans:
    if "+" in text or "00" in text:
        yield from (m.span() for m in _INTERNATIONAL.finditer(text) if _is_international(m["number"]))
    for m in _ANY.finditer(text):
        if _SAYS_PHONE.search(text[max(0, m.start() - 50) : m.start()]) and not _DATE.fullmatch(m[0]):
            yield m.span()
    for pattern in (_AMERICAN, _TWO_FOUR_FOUR):
        yield from (m.span() for m in pattern.finditer(text))
    for pattern in (_TRUNK, _BARE) if "0" in text else ():
        yield from (m.span() for m in pattern.finditer(text) if _is_national(m[0], text[max(0, m.start() - 20) : m.start()]))


_FINDERS = {"key": _keys, "email": _emails, "user": _users, "iban": _ibans, "card": _cards, "ip": _ips, "phone": _phones}
