"""Dirt made from clean text: what a web crawl holds that nobody wants to train on. For tests, for the classifier, and for planting.

soiled(text, "keyboard", seed=0)        # "kdjf wlekr ..." about as long as the text; the same for the same text, kind and seed
SEEN, UNSEEN                            # kinds to learn from, and kinds to be tested on
"""

import base64
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from tinygpt.errors import InvalidInput, did_you_mean

_Rng = np.random.Generator


def soiled(text: str, kind: str, seed: int = 0) -> str:
    """Dirt of a kind in the length of a text (within a line or so). Raises ValueError for an unknown kind."""
    if kind not in MAKERS:
        raise InvalidInput(f"dirt {kind!r}, expected one of {', '.join(MAKERS)}; {did_you_mean(kind, MAKERS)}")
    digest = hashlib.sha256(f"{seed} {kind} ".encode() + text.encode("utf-8", "surrogatepass")).digest()
    return MAKERS[kind](np.random.default_rng(list(digest[:8])), text)


def _pick(rng: _Rng, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _fill(n: int, part: Callable[[], str], joint: str) -> str:
    """Parts up to n characters, at least one."""
    parts, size = [part()], 0
    while (size := size + len(parts[-1]) + len(joint)) < n:
        parts.append(part())
    return joint.join(parts)


def _shuffled(rng: _Rng, text: str) -> str:
    words = text.split()
    return " ".join(words[i] for i in rng.permutation(len(words)))


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _keyboard(rng: _Rng, text: str) -> str:
    return " ".join("".join(_LETTERS[i] for i in rng.integers(26, size=max(len(word), 1))) for word in text.split()) or "asdf"


_MENU = (
    "Home", "About us", "Contact", "Log in", "Sign up", "My account", "Cart (0)", "Search", "Shop", "Blog", "News", "FAQ", "Help", "Careers",
    "Next page", "Previous", "Read more", "Share on Facebook", "Tweet", "Subscribe", "Newsletter", "Categories", "Archives", "Sitemap", "Top",
    "All rights reserved", "Leave a comment", "Reply", "Skip to content", "Menu", "Download app", "Follow us", "Related posts", "Tags", "RSS",
)  # fmt: skip


def _navigation(rng: _Rng, text: str) -> str:
    return _fill(len(text), lambda: _pick(rng, (" | ", " > ", " ")).join(_pick(rng, _MENU) for _ in range(rng.integers(1, 6))), "\n")


def _base64(rng: _Rng, text: str) -> str:
    data = base64.b64encode(rng.bytes(3 * len(text) // 4 + 3)).decode()
    return "\n".join(data[i : i + 76] for i in range(0, len(data), 76))


_CODE = (
    "function {0}({1},{2}){{return {1}+{2}}};", "var {0}={1}||[];", "if(!{0}.{1}){{{2}()}}", "for(var {0}=0;{0}<{1}.length;{0}++){{{2}.push({1}[{0}])}};",
    "!function({0}){{{0}.{1}={2}}}(window);", "{0}.{1}=function(){{return this.{2}}};", "try{{{0}({1})}}catch({2}){{}}",
)  # fmt: skip


def _minified(rng: _Rng, text: str) -> str:
    return _fill(
        len(text), lambda: _pick(rng, _CODE).format(*("".join(_LETTERS[i] for i in rng.integers(26, size=2)) for _ in range(3))), ""
    )


_GOODS = ("watches", "shoes", "pills", "loans", "casino", "handbags", "insurance", "phone cases", "flights", "hotels", "diet", "hosting")
_PRAISE = (
    "cheap",
    "best",
    "buy",
    "discount",
    "free shipping",
    "online",
    "2024",
    "review",
    "top 10",
    "near me",
    "for sale",
    "price",
    "deal",
)


def _search_spam(rng: _Rng, text: str) -> str:
    goods = _pick(rng, _GOODS)
    return _fill(len(text), lambda: f"{_pick(rng, _PRAISE)} {goods} {_pick(rng, _PRAISE)}", _pick(rng, (", ", " ", "\n")))


def _repeated(rng: _Rng, text: str) -> str:
    line = _pick(rng, [line for line in text.splitlines() if line.strip()] or ["again"])
    return _fill(len(text), lambda: line, "\n")


_CONFUSED = {"m": "rn", "l": "1", "o": "0", "e": "c", "h": "li", "d": "cl", "i": "!", "s": "5", "w": "vv", "t": "f", "a": "@", " ": " . "}


def _scanned(rng: _Rng, text: str) -> str:
    wrong = rng.random(len(text)) < 0.3
    return "".join(_CONFUSED.get(c, c) if bad else c for c, bad in zip(text, wrong, strict=True))


_CONSENT = (
    "We and our partners store and access information on a device, such as cookies.", "By continuing to browse you agree to our use of cookies.",
    "You can change your preferences at any time in your privacy settings.", "Accept all", "Reject all", "Manage options",
    "Some vendors may process your data on the basis of legitimate interest.", "See our privacy policy and terms of use.",
    "Strictly necessary cookies are always active.", "Your consent applies to this website only.", "Save and exit", "Measurement, advertising, content",
)  # fmt: skip


def _consent(rng: _Rng, text: str) -> str:
    return _fill(len(text), lambda: _pick(rng, _CONSENT), "\n")


def _hex(rng: _Rng, text: str) -> str:
    at = iter(range(0, 1 << 40, 16))
    return _fill(len(text), lambda: f"{next(at):08x}: " + " ".join(rng.bytes(2).hex() for _ in range(8)), "\n")


def _numbers(rng: _Rng, text: str) -> str:
    return _fill(len(text), lambda: "\t".join(f"{x:.{rng.integers(4)}f}" for x in rng.normal(scale=1000, size=6)), "\n")


def _backwards(rng: _Rng, text: str) -> str:
    return " ".join(word[::-1] for word in text.split())


_TAGS = ("div", "span", "li", "a", "td", "p", "ul", "section")


def _markup(rng: _Rng, text: str) -> str:
    words = text.split() or ["x"]
    return _fill(len(text), lambda: f'<{(tag := _pick(rng, _TAGS))} class="c{rng.integers(999)}">{_pick(rng, words)}</{tag}>', "")


def _server_log(rng: _Rng, text: str) -> str:
    def line() -> str:
        ip = ".".join(map(str, rng.integers(1, 255, size=4)))
        return f'{ip} - - [{rng.integers(1, 29):02}/Mar/2024:{rng.integers(24):02}:{rng.integers(60):02}:07] "GET /{rng.integers(9999)}.html HTTP/1.1" 200 {rng.integers(99999)}'

    return _fill(len(text), line, "\n")


SEEN = ("shuffled words", "keyboard", "navigation", "base64", "minified code", "search spam", "repeated line")
MAKERS: dict[str, Callable[[_Rng, str], str]] = {
    **dict(zip(SEEN, (_shuffled, _keyboard, _navigation, _base64, _minified, _search_spam, _repeated), strict=True)),
    "scanner errors": _scanned,
    "cookie consent": _consent,
    "hex dump": _hex,
    "number table": _numbers,
    "backwards": _backwards,
    "markup": _markup,
    "server log": _server_log,
}
UNSEEN = tuple(kind for kind in MAKERS if kind not in SEEN)
