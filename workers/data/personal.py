"""Personal data and secrets in texts: found, checked by their checksums and counted; the text is never kept.

Precision and recall on generated people are printed by benchmarks/data.py.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

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
PHONE = re.compile(r"(?<![\w./-])(?:\+|00|\(?0)[\d][\d ()./-]{5,18}\d(?!\w)")
LOCAL_PHONE = re.compile(r"(?<![\w./-])\(?[2-9]\d{2}\)?[ .-]\d{3}[ .-]\d{4}(?:x\d{1,5})?(?!\w)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
CARD = re.compile(r"(?<![\w-])(?:\d[ -]?){12,18}\d(?![\w-])")
SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
FISCAL_CODE = re.compile(r"\b[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]\b")
DNI = re.compile(r"\b[XYZ\d]\d{7}-?[A-Z]\b")
NIR = re.compile(r"(?<!\w)[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}(?!\w)")
TAX_ID = re.compile(r"(?<![\w-])\d{2} ?\d{3} ?\d{3} ?\d{3}(?![\w-])")
PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")
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


def personal_kinds(text: str) -> Counter[str]:
    """How often each kind occurs in `text`. A number is counted as one kind only, the most telling one."""
    found: Counter[str] = Counter()
    if "@" in text:
        found["email"] = sum(1 for _ in EMAIL.finditer(text))
    taken: list[tuple[int, int]] = []
    for kind, pattern, holds in _NUMBERS:
        for match in pattern.finditer(text):
            if not _overlaps(match.span(), taken) and holds(match.group()):
                taken.append(match.span())
                found[kind] += 1
    for kind, pattern in _SECRETS:
        for match in pattern.finditer(text):
            if not _overlaps(match.span(), taken):
                taken.append(match.span())
                found[kind] += 1
    for match in PASSWORD.finditer(text):
        if not _overlaps(match.span(1), taken) and _is_random(match.group(1)):
            found["password"] += 1
    return +found


def _overlaps(span: tuple[int, int], taken: list[tuple[int, int]]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in taken)


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
    """Letters and digits mixed, with little repetition."""
    if text.isalpha() or text.isdigit():
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
    ("private_key", PRIVATE_KEY),
    ("api_key", API_KEY),
    ("access_token", TOKEN),
)


def kinds() -> Iterator[str]:
    """Every kind there is."""
    yield from dict.fromkeys(["email", *(kind for kind, _, _ in _NUMBERS)])
    yield from (kind for kind, _ in _SECRETS)
    yield "password"
