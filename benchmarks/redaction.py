"""Redaction: how much planted personal data it finds, and what it takes for personal data that is none.

    python benchmarks/redaction.py                # seconds; needs faker: pip install "tinygpt[parity]"
    python benchmarks/redaction.py --seed 1 --n 5000

1,000 values made by faker (e-mail, phone, card, IBAN and IP in equal numbers, in the locales en_US, de_DE, fr_FR and ja_JP) stand in
sentences of the language, each once; half of the addresses in quotes, Markdown, tables and links. 1,000 more sentences have no personal data, but what looks like it: version numbers, ISBNs, dates, long numbers,
hashes, formulas, paths, matrix products. IP addresses are public ones: `tinygpt.curate.privacy` keeps the others.

recall      share of the values of which every character is replaced, by a mark of their kind
precision   share of the marks that stand for a planted value, in both kinds of sentences together

Three quarters of the phone numbers stand after a word that announces them. How many are found without one is counted apart, and so are 300 keys, tokens and home paths by their documented forms, as faker makes none.
Where phonenumbers is installed (Google's library, 48 MB), its example numbers of all countries, landline and mobile, are tried, too: in the two international
forms with no word before them, and in the national form after "Phone:".

Writes --output as JSON, and prints the table of docs/curation.md.
"""

import hashlib
import ipaddress
import json
import random
import string
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt.arguments import parse_args
from tinygpt.curate.privacy import find
from tinygpt.errors import MissingPackage
from tinygpt.fields import PathName

LOCALES = ("en_US", "de_DE", "fr_FR", "ja_JP")
KINDS = ("email", "phone", "card", "iban", "ip")


class Planted(NamedTuple):
    """A sentence, and where in it the value stands; kind "" for a sentence without one."""

    text: str
    kind: str
    start: int
    end: int
    locale: str


# "{}" is the value. The second sentence for phone numbers is the one that does not announce them.
SENTENCES = {
    "en_US": {
        "email": ["Please write to {} if anything is unclear.", "The author ({}) has moved since.", "From: Sarah Miller <{}>", "Contact:{}, any time."],
        "phone": ["You can call me at {} after six.", "Sarah Miller, {}, has the keys.", "Phone: {}", "Her number is {}; leave a message on her phone."],
        "card": ["I paid with {} and never got a receipt.", "Card number: {}, valid until 09/27.", "Refund the order to {}.", "It was booked twice on {} in May."],
        "iban": ["Please transfer the rent to {} by Friday.", "IBAN: {}", "The account ({}) was closed in 2019.", "Send it to {}, please."],
        "ip": ["The login came from {} at 3:14.", "{} - - [10/Oct/2023:13:55:36] \"GET / HTTP/1.1\" 200", "Block {} in the firewall.", "Her address was {}, said the log."],
    },
    "de_DE": {
        "email": ["Schreiben Sie bitte an {}, falls etwas unklar ist.", "Die Autorin ({}) ist umgezogen.", "Von: Sabine Müller <{}>", "Kontakt:{}."],
        "phone": ["Sie erreichen mich abends unter {}.", "Sabine Müller, {}, hat den Schlüssel.", "Telefon: {}", "Bitte rufen Sie {} an, wenn Sie da sind."],
        "card": ["Ich habe mit {} bezahlt und keine Quittung bekommen.", "Kartennummer: {}, gültig bis 09/27.", "Bitte auf {} erstatten.", "Zweimal von {} abgebucht."],
        "iban": ["Bitte überweisen Sie die Miete bis Freitag auf {}.", "IBAN: {}", "Das Konto ({}) ist seit 2019 geschlossen.", "An {}, bitte."],
        "ip": ["Die Anmeldung kam um 3:14 Uhr von {}.", "Im Protokoll steht {}, mehr nicht.", "Bitte {} sperren.", "Ihre Adresse war {}."],
    },
    "fr_FR": {
        "email": ["Écrivez à {} si quelque chose n'est pas clair.", "L'auteure ({}) a déménagé depuis.", "De : Claire Martin <{}>", "Contact:{}."],
        "phone": ["Vous pouvez me joindre au {} le soir.", "Claire Martin, {}, a les clés.", "Tél. : {}", "Son numéro est le {}, laissez un message."],
        "card": ["J'ai payé avec {} sans recevoir de reçu.", "Numéro de carte : {}, valable jusqu'au 09/27.", "À rembourser sur {}.", "Débité deux fois de {} en mai."],
        "iban": ["Merci de virer le loyer sur {} avant vendredi.", "IBAN : {}", "Le compte ({}) est fermé depuis 2019.", "À envoyer à {}."],
        "ip": ["La connexion venait de {} à 3 h 14.", "Le journal indique {}, rien de plus.", "Bloquez {} dans le pare-feu.", "Son adresse était {}."],
    },
    "ja_JP": {
        "email": ["ご不明な点は{}までお問い合わせください。", "著者({})は引っ越しました。", "差出人: 佐藤花子 <{}>", "メールは{}です。"],
        "phone": ["夜は{}に電話してください。", "佐藤花子、{}、鍵を持っています。", "電話番号:{}", "携帯は{}です。"],
        "card": ["{}で支払いましたが領収書が届きません。", "カード番号は{}、有効期限は09/27です。", "{}に返金してください。", "五月に{}から二回引き落とされました。"],
        "iban": ["金曜日までに家賃を{}に振り込んでください。", "IBAN:{}", "口座({})は2019年に閉鎖されました。", "{}へ送金してください。"],
        "ip": ["3時14分に{}からログインがありました。", "記録には{}とだけあります。", "{}を遮断してください。", "アドレスは{}でした。"],
    },
}  # fmt: skip

FRAMES = [
    "'{}'",
    "`{}`",
    "**{}**",
    "| a | {}|",
    "https://example.org/leave?mail={}&list=3",
    "https://example.org/leave/{}",
    "{}(work)",
    "...{}",
]
"""What stands around every second address, in text of all languages: quotes, Markdown, tables, links."""


def planted(seed: int, n: int) -> list[Planted]:
    """n sentences with one value of faker's each: kinds and locales in turn. Raises ImportError without faker."""
    try:
        from faker import Faker
    except ImportError as error:
        raise MissingPackage("redaction: faker is missing, expected it for the values; pip install faker") from error
    rng, found = random.Random(seed), []
    fakers = {locale: Faker(locale) for locale in LOCALES}
    for number, fake in enumerate(fakers.values()):
        fake.seed_instance(1000 * seed + number)
    for i in range(n):
        kind, locale = KINDS[i % len(KINDS)], LOCALES[i // len(KINDS) % len(LOCALES)]
        value = _value(fakers[locale], kind, rng)
        sentence, turn = rng.choice(SENTENCES[locale][kind]), i // (len(KINDS) * len(LOCALES))
        if kind == "email" and turn % 2:
            sentence = FRAMES[turn // 2 % len(FRAMES)]
        before, _, after = sentence.partition("{}")
        found.append(Planted(before + value + after, kind, len(before), len(before) + len(value), locale))
    return found


def unannounced(seed: int, n: int) -> list[Planted]:
    """n sentences with a phone number and no word that says so, locales in turn."""
    found = []
    for sentence in planted(seed, n * len(KINDS))[KINDS.index("phone") :: len(KINDS)]:
        before, _, after = SENTENCES[sentence.locale]["phone"][1].partition("{}")
        value = sentence.text[sentence.start : sentence.end]
        found.append(Planted(before + value + after, "phone", len(before), len(before) + len(value), sentence.locale))
    return found


def countries() -> dict[str, list[Planted]]:
    """Sentences with phonenumbers' example numbers, by form; none without the library."""
    try:
        import phonenumbers as library
    except ImportError:
        return {}
    found: dict[str, list[Planted]] = {"international": [], "national": []}
    forms = {library.PhoneNumberFormat.INTERNATIONAL: "international", library.PhoneNumberFormat.E164: "international"}
    for region in sorted(library.SUPPORTED_REGIONS):
        for kind in (library.PhoneNumberType.FIXED_LINE, library.PhoneNumberType.MOBILE):
            example = library.example_number_for_type(region, kind)
            for form, name in {**forms, library.PhoneNumberFormat.NATIONAL: "national"}.items() if example else ():
                value, before = library.format_number(example, form), "Ask Anna, " if name == "international" else "Phone: "
                found[name].append(Planted(f"{before}{value}, today.", "phone", len(before), len(before) + len(value), region))
    return found


def _value(fake: Any, kind: str, rng: random.Random) -> str:
    """One value; cards and IBANs as often in groups of four as without blanks."""
    if kind == "email":
        return str(rng.choice([fake.email, fake.company_email, fake.free_email, fake.safe_email])())
    if kind == "phone":
        return str(fake.phone_number())
    if kind == "ip":
        while not ipaddress.ip_address(address := rng.choice([fake.ipv4_public, fake.ipv6])()).is_global:
            pass
        return str(address)
    value = str(fake.credit_card_number() if kind == "card" else fake.iban())
    sign = rng.choice(["", "", " ", "-" if kind == "card" else " "])
    return sign.join(value[i : i + 4] for i in range(0, len(value), 4))


def forms(seed: int, n: int) -> list[Planted]:
    """n sentences with a key, token or home path made by its documented form."""
    rng = random.Random(seed)

    def some(signs: str, k: int) -> str:
        return "".join(rng.choice(signs) for _ in range(k))

    letters, mixed = string.ascii_letters, string.ascii_letters + string.digits
    makers: list[tuple[str, Callable[[], str]]] = [
        ("key", lambda: "AKIA" + some(string.ascii_uppercase + "234567", 16)),
        ("key", lambda: rng.choice(["ghp_", "gho_", "ghs_"]) + some(mixed, 36)),
        ("key", lambda: "github_pat_" + some(mixed, 22) + "_" + some(mixed, 59)),
        ("key", lambda: "AIza" + some(mixed + "-_", 34) + some(mixed, 1)),
        ("key", lambda: f"xoxb-{rng.randrange(10**11, 10**12)}-{rng.randrange(10**11, 10**12)}-{some(mixed, 24)}"),
        ("key", lambda: rng.choice(["sk_live_", "rk_test_"]) + some(mixed, 24)),
        ("key", lambda: "sk-proj-" + some(mixed, 40)),
        ("key", lambda: "hf_" + some(letters, 34)),
        ("key", lambda: f"eyJ{some(mixed, 33)}.eyJ{some(mixed, 60)}.{some(mixed + '-_', 42)}{some(mixed, 1)}"),
        ("key", lambda: f"-----BEGIN RSA PRIVATE KEY-----\n{some(mixed + '+/', 64)}\n{some(mixed + '+/', 30)}==\n-----END RSA PRIVATE KEY-----"),
        ("user", lambda: rng.choice(["anna", "j.smith", "müller", "lee_k"])),
    ]  # fmt: skip
    homes = ["cd /home/{}/work", "open /Users/{}/Desktop/a.txt", "dir C:\\Users\\{}\\Documents", 'File "/home/{}/a.py", line 3']
    found = []
    for i in range(n):
        kind, make = makers[i % len(makers)]
        value = make()
        before, _, after = rng.choice(homes if kind == "user" else ["token={}", "Use {} here.", '"{}",', "export KEY={}"]).partition("{}")
        found.append(Planted(before + value + after, kind, len(before), len(before) + len(value), ""))
    return found


def clean(seed: int, n: int) -> list[Planted]:
    """n lines without personal data: 30 forms in turn, with numbers drawn."""
    rng = random.Random(seed)
    r = rng.randrange

    def digits(k: int) -> str:
        return str(r(1, 10)) + "".join(str(r(10)) for _ in range(k - 1))

    def isbn13() -> str:
        body = "978" + digits(9)
        return body + str(-sum(int(d) * (1, 3)[i % 2] for i, d in enumerate(body)) % 10)

    def sha(k: int) -> str:
        return hashlib.sha256(digits(20).encode()).hexdigest()[:k]

    makers: list[Callable[[], str]] = [
        lambda: f"Upgrade to version {r(9)}.{r(20)}.{r(9)}.{r(20)} before you report it.",
        lambda: f"requires numpy>={r(3)}.{r(30)}.{r(9)}, scipy=={r(2)}.{r(20)}.{r(5)}.{r(3)}",
        lambda: f"Version {r(9)}.{r(9)}.{r(9)}.{r(9)} der Bibliothek ist vom {r(1, 29)}.{r(1, 13)}.20{r(10, 25)}.",
        lambda: f"ISBN {isbn13()}, {r(100, 900)} pages",
        lambda: f"ISBN 978-{r(10)}-{r(10, 100)}-{r(100000, 1000000)}-{r(10)}; ISBN-10: {r(10)}-{r(100, 1000)}-{r(10000, 100000)}-{r(10)}",
        lambda: f"ISSN 0{r(100, 1000)}-{r(1000, 10000)}, vol. {r(90)}, pp. {r(1000)}-{r(1000, 2000)}",
        lambda: f"arXiv:{r(10, 25)}{r(10, 13)}.{r(10000, 20000)}v{r(1, 5)}, doi:10.{r(1000, 9999)}/{digits(7)}.{digits(7)}",
        lambda: f"On 20{r(10, 25)}-{r(10, 13)}-{r(10, 29)}T{r(10, 24)}:{r(10, 60)}:{r(10, 60)}Z the build took {r(100)}.{r(100)} s.",
        lambda: f"Born {r(1, 13)}/{r(1, 29)}/19{r(10, 100)}, moved on {r(1, 29)}.{r(1, 13)}.19{r(10, 100)}.",
        lambda: f"The table has {digits(10)} rows and {digits(13)} bytes.",
        lambda: f"Population {r(1, 90)},{r(100, 999)},{r(100, 999)}; area {digits(3)} {r(100, 999)} km2",
        lambda: f"timestamp {r(1_500_000_000, 1_900_000_000)} ({r(1_500_000_000_000, 1_900_000_000_000)} ms)",
        lambda: f"commit {sha(40)} fixes #{r(1, 9999)}",
        lambda: f"sha256 {sha(64)}  file-{r(99)}.tar.gz",
        lambda: f"id {uuid.UUID(int=rng.getrandbits(128), version=4)} in shard {r(1000):05d}-of-{r(1000):05d}",
        lambda: f"x = ({r(90)} + {r(90)}) / {r(1, 90)} - {r(9)}.{digits(9)} * y ** {r(9)}",
        lambda: f"pi is 3.14159265358979, e is 2.{digits(12)}, and 1e-{r(10, 99)} is small",
        lambda: f"{r(90)}.{digits(6)}, -{r(90)}.{digits(6)} lies {r(900)} m above the sea",
        lambda: " ".join(digits(r(1, 6)) for _ in range(12)),
        lambda: f"loss {r(9)}.{digits(4)} lr {r(9)}.{digits(2)}e-0{r(9)} step {r(10_000)}/{r(10_000, 90_000)}",
        lambda: f"logits = x@w.T + hidden@self.weight[{r(9)}]; attn = q@k.transpose({r(3)}, {r(3)})",
        lambda: f"The icon@{r(1, 4)}x.png is {r(16, 900)}x{r(16, 900)}; see react@{r(20)}.{r(20)}.{r(9)}",
        lambda: f"ping 192.168.{r(256)}.{r(256)} from 10.{r(256)}.{r(256)}.{r(256)}; the docs say 192.0.2.{r(256)} and 2001:db8::{r(9999)}",
        lambda: f"eth0 {':'.join(f'{r(256):02x}' for _ in range(6))} mtu {r(1000, 9000)} a[{r(9)}::{r(1, 9)}] std::vector",
        lambda: f"Call f({r(99)}, {r(99)}) or phone home {r(2, 9)} times; the telephone was invented in 1876.",
        lambda: f"CAS {r(1000, 99999)}-{r(10, 99)}-{r(9)}, boiling at {r(100)}.{r(9)} degrees; Lynn, MA 0{r(1000, 9999)}-{r(1000, 9999)}",
        lambda: f"/home/user/data/{r(99)} and /usr/lib/python3.{r(9, 15)}/site-packages, see https://example.org/home/news/{r(99)}",
        lambda: f"@dataclass class A: x: int = {r(99)}  # see @param on page {r(999)}, section {r(9)}.{r(9)}.{r(9)}",
        lambda: f"Die Nummern {r(10, 99)}, {r(100, 999)} und {digits(6)} gewinnen; l'article {r(1, 99)}-{r(1, 99)} du {r(1, 29)} mai 20{r(10, 25)}.",
        lambda: f"第{r(1, 99)}章は{r(10, 999)}ページ、20{r(10, 25)}年{r(1, 13)}月{r(1, 29)}日に{digits(9)}件を処理した。",
    ]  # fmt: skip
    return [Planted(makers[i % len(makers)](), "", 0, 0, "") for i in range(n)]


def misses_and_alarms(sentences: list[Planted]) -> tuple[list[Planted], list[tuple[str, Planted]]]:
    """Sentences whose value is not replaced in full and by its kind; (replaced text, sentence) of every mark that stands for no value."""
    missed, alarms = [], []
    for sentence in sentences:
        text, kind, start, end, _ = sentence
        found = find(text)
        if kind and not any(each.kind == kind and each.start <= start and end <= each.end for each in found):
            missed.append(sentence)
        alarms += [(text[each.start : each.end], sentence) for each in found if not (each.start < end and start < each.end)]
    return missed, alarms


@dataclass(frozen=True)
class Config:
    n: int = 1000
    """Planted values, and as many clean sentences."""
    seed: int = 0
    """Of values and sentences."""
    output: PathName = "benchmarks/results/redaction.json"
    """File for the report; "" for none."""


def measured(n: int, seed: int) -> dict[str, Any]:
    """Recall by kind and by kind and locale, precision, and what was wrong."""
    values, others, plain = planted(seed, n), forms(seed, 300), clean(seed, n)
    missed, alarms = misses_and_alarms(values)
    missed_forms, alarms_forms = misses_and_alarms(others)
    _, alarms_plain = misses_and_alarms(plain)
    alarms = [*alarms, *alarms_plain]
    quiet = unannounced(seed, n)
    missed_quiet, _ = misses_and_alarms(quiet)
    began = time.process_time()
    misses_and_alarms([*values, *plain])
    seconds = time.process_time() - began

    def recall(chosen: Callable[[Planted], bool], planted: list[Planted], missed: list[Planted]) -> float:
        return 1 - sum(map(chosen, missed)) / max(1, sum(map(chosen, planted)))

    def pairs() -> Iterator[tuple[str, str]]:
        return ((kind, locale) for kind in KINDS for locale in LOCALES)

    return {
        "n": n,
        "seed": seed,
        "recall": {kind: recall(lambda s, k=kind: s.kind == k, values, missed) for kind in KINDS},  # type: ignore[misc]
        "recall_by_locale": {
            f"{kind} {locale}": recall(lambda s, k=kind, where=locale: (s.kind, s.locale) == (k, where), values, missed)  # type: ignore[misc]
            for kind, locale in pairs()
        },
        "recall_of_forms": {kind: recall(lambda s, k=kind: s.kind == k, others, missed_forms) for kind in ("key", "user")},  # type: ignore[misc]
        "recall_of_unannounced_phones": {
            where: recall(lambda s, where=where: s.locale == where, quiet, missed_quiet)  # type: ignore[misc]
            for where in LOCALES
        },
        "recall_of_countries": {
            form: [1 - len(misses_and_alarms(sentences)[0]) / len(sentences), len(sentences)] for form, sentences in countries().items()
        },
        "precision": (n - len(missed)) / max(1, n - len(missed) + len(alarms)),
        "alarms": len(alarms),
        "alarms_in_forms": len(alarms_forms),
        "missed": [[s.locale, s.text[s.start : s.end], s.text] for s in missed],
        "alarms_shown": [[what, s.text] for what, s in alarms[:20]],
        "sentences_per_cpu_second": round(2 * n / seconds),
    }


def table(result: dict[str, Any]) -> str:
    """Recall by kind and locale."""
    lines = [f"| | {' | '.join(LOCALES)} | all |", "|---|" + "---|" * (len(LOCALES) + 1)]
    for kind in KINDS:
        cells = [result["recall_by_locale"][f"{kind} {locale}"] for locale in LOCALES]
        lines.append(f"| {kind} | {' | '.join(f'{x:.3f}' for x in [*cells, result['recall'][kind]])} |")
    return "\n".join([*lines, "", f"precision {result['precision']:.4f}: {result['alarms']} false alarms"])


def main() -> None:
    config = parse_args(Config(), __doc__)
    result = measured(config.n, config.seed)
    if config.output:
        Path(config.output).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(result))
    print(f"keys and tokens {result['recall_of_forms']['key']:.3f}, names in home paths {result['recall_of_forms']['user']:.3f}")
    quiet = ", ".join(f"{where} {x:.3f}" for where, x in result["recall_of_unannounced_phones"].items())
    print(f"phone numbers that no word announces: {quiet}")
    for form, (recall, n) in result["recall_of_countries"].items():
        print(f"numbers of all countries, {form}: {recall:.3f} of {n}")
    print(f"{result['sentences_per_cpu_second']:,} sentences per CPU second")


if __name__ == "__main__":
    main()
