"""Personal data and secrets in texts: found, checked by their checksums and counted; the text is never kept.

Precision and recall on generated people are printed by benchmarks/data.py. Names of persons are not looked
for: what finds them without a table of all names is a language model of its own, and what a table finds is
mostly something else.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

import phonenumbers
from stdnum import iban as iban_numbers
from stdnum import luhn
from stdnum.de import idnr
from stdnum.es import dni
from stdnum.exceptions import ValidationError
from stdnum.fr import nir
from stdnum.it import codicefiscale
from stdnum.us import ssn

PREFILTER = (
    r"@[A-Za-z0-9]|(?:\d[ ./()-]{0,2}){7}|-----BEGIN|\b[A-Z]{2}\d{2}[ ]?[A-Z0-9]{4}|\b[A-Z]{6}\d{2}[A-Z]\d{2}"
    r"|sk-|sk_live|AKIA|ASIA|gh[pousr]_|github_pat_|xox[abpr]-|AIza|glpat-|hf_|npm_|eyJ[A-Za-z0-9_-]{8}"
    r"|(?i:passwor[dt]|passwd|secret|api[_-]?key|access[_-]?token)[\"']?\s*[:=]"
)
"""RE2. What it does not match holds none of the kinds below."""

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[a-z0-9-]{1,63}\.)+[a-z]{2,24}\b", re.IGNORECASE)
PHONE = re.compile(r"(?<![\w./-])(?:\+|00|\(?0)[\d][\d ()./-]{5,18}\d(?:x\d{1,5})?(?!\w)")
LOCAL_PHONE = re.compile(
    r"(?<![\w./-])(?:\([2-9]\d{2}\)[ .-]?|[2-9]\d{2}[ .-])\d{3}[ .-]\d{4}(?:x\d{1,5})?(?!\w)"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
CARD = re.compile(r"(?<![\w-])(?:\d[ -]?){12,18}\d(?![\w-])")
SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
FISCAL_CODE = re.compile(r"\b[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]\b")
DNI = re.compile(r"\b[XYZ\d]\d{7}-?[A-Z]\b")
NIR = re.compile(r"(?<!\w)[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}(?!\w)")
TAX_ID = re.compile(r"(?<![\w-])\d{2} ?\d{3} ?\d{3} ?\d{3}(?![\w-])")
PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")
KEY_END = re.compile(r"-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")
KEY_BODY = re.compile(r"(?:\\n|[A-Za-z0-9+/=\s])*")
API_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:sk-(?:proj-|ant-[a-z0-9]+-)?[A-Za-z0-9_-]{20,}|sk_live_[A-Za-z0-9]{16,}"
    r"|A(?:KIA|SIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|xox[abpr]-[A-Za-z0-9-]{10,}"
    r"|AIza[\w-]{35}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36})"
)
TOKEN = re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}")
PASSWORD = re.compile(
    r"(?:passwor[dt]|passwd|secret|api[_-]?key|access[_-]?token)[\"']?\s*[:=]\s*[\"']?([^\s\"',;<>]{8,})",
    re.IGNORECASE,
)
CARD_STARTS = re.compile(r"4|5[0-8]|2[2-7]|3[045678]|6|2131|1800")
RANDOM_BITS = 3.0
"""Entropy a character from which the value of a `password=` looks like a secret rather than a word."""


class Place(NamedTuple):
    """Where something stands in a text."""

    kind: str
    start: int
    end: int


def personal_kinds(text: str) -> Counter[str]:
    """How often each kind occurs in `text`."""
    return Counter(place.kind for place in personal_places(text))


def personal_places(text: str) -> list[Place]:
    """Where each kind stands, in no order. Nothing is counted as two kinds, but as the more telling one."""
    taken = bytearray(len(text))
    places: list[Place] = []

    def take(kind: str, start: int, end: int) -> None:
        if 1 not in taken[start:end]:
            taken[start:end] = b"\1" * (end - start)
            places.append(Place(kind, start, end))

    if "@" in text:
        for match in EMAIL.finditer(text):
            take("email", *match.span())
    for start, end in _private_keys(text):
        take("private_key", start, end)
    for kind, pattern, holds in _NUMBERS:
        for match in pattern.finditer(text):
            if 1 not in taken[match.start() : match.end()] and holds(match.group()):
                take(kind, *match.span())
    for kind, pattern in _SECRETS:
        for match in pattern.finditer(text):
            take(kind, *match.span())
    for match in PASSWORD.finditer(text):
        if _is_random(match.group(1)):
            take("password", *match.span(1))
    return places


def mask(text: str, kinds: Container[str]) -> tuple[str, Counter[str]]:
    """`text` with `[EMAIL]` and the like in place of what is of these kinds, and how often."""
    places = [place for place in personal_places(text) if place.kind in kinds]
    if not places:
        return text, Counter()
    pieces, at = [], 0
    for place in sorted(places, key=lambda place: place.start):
        pieces += [text[at : place.start], f"[{place.kind.upper()}]"]
        at = place.end
    return "".join([*pieces, text[at:]]), Counter(place.kind for place in places)


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    """From the line that begins a key to the one that ends it, or over what looks like its lines."""
    at, ends = 0, True
    while (match := PRIVATE_KEY.search(text, at)) is not None:
        end = KEY_END.search(text, match.end()) if ends else None
        ends = end is not None
        body = KEY_BODY.match(text, match.end())
        at = end.end() if end is not None else body.end() if body else match.end()
        yield match.start(), at


def _is_iban(text: str) -> bool:
    return _valid(iban_numbers.validate, text)


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return bool(CARD_STARTS.match(digits)) and len(set(digits)) > 2 and luhn.is_valid(digits)


def _is_phone(text: str) -> bool:
    """A number that a network could have given out; without a country code, in one of a few countries."""
    regions = ("ZZ",) if text.startswith(("+", "00")) else ("DE", "FR", "GB", "IT")
    text = "+" + text[2:] if text.startswith("00") else text
    return any(_is_assigned(text, region) for region in regions)


def _is_american(text: str) -> bool:
    return _is_assigned(text, "US")


def _is_assigned(text: str, region: str) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        return False


def _valid(validate: Callable[[str], object], text: str) -> bool:
    try:
        validate(text)
    except (ValidationError, ValueError):
        return False
    return True


def _is_random(text: str) -> bool:
    """Letters and digits mixed, with little repetition; not what stands for a value, such as `${KEY}`."""
    if text.isalpha() or text.isdigit() or text[0] in "[<{$":
        return False
    counts = Counter(text)
    bits = -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())
    return bits >= RANDOM_BITS or len(text) < 12


def _checked(validate: Callable[[str], object]) -> Callable[[str], bool]:
    return lambda text: _valid(validate, text)


_NUMBERS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("iban", IBAN, _is_iban),
    ("national_id", FISCAL_CODE, _checked(codicefiscale.validate)),
    ("national_id", DNI, _checked(dni.validate)),
    ("national_id", NIR, _checked(nir.validate)),
    ("card_number", CARD, _is_card),
    ("national_id", SSN, _checked(ssn.validate)),
    ("national_id", TAX_ID, _checked(idnr.validate)),
    ("phone", PHONE, _is_phone),
    ("phone", LOCAL_PHONE, _is_american),
)
_SECRETS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("api_key", API_KEY),
    ("access_token", TOKEN),
)


def kinds() -> Iterator[str]:
    """Every kind there is."""
    yield from dict.fromkeys(["email", *(kind for kind, _, _ in _NUMBERS)])
    yield from ("private_key", *(kind for kind, _ in _SECRETS), "password")
