"""Personal data and secrets: found once each, as the more telling kind, and masked whole."""

import pytest

from workers.data.personal import kinds, mask, personal_kinds

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA+/=\nabc\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to Jane.Doe+x@example.co.uk, please", "write to [EMAIL], please"),
        ("call +49 30 901820 or (030) 901820", "call [PHONE] or [PHONE]"),
        ("call +1-212-736-5000x12 now", "call [PHONE] now"),
        ("pay to DE89 3704 0044 0532 0130 00 today", "pay to [IBAN] today"),
        ("pay to GB83 WEST 1234 5698 7654 32 today", "pay to GB83 WEST 1234 5698 7654 32 today"),
        ("card 5555 5555 5555 4444?", "card 5555 5555 5555 4444?"),
        ("card 4012 8888 8888 1881", "card [CARD_NUMBER]"),
        ("card 4012 8888 8888 1882", "card 4012 8888 8888 1882"),
        (f"key:\n{KEY}\nend", "key:\n[PRIVATE_KEY]\nend"),
        (f"{KEY} and {KEY}", "[PRIVATE_KEY] and [PRIVATE_KEY]"),
        ("-----BEGIN PRIVATE KEY-----\nMIIB\nabc= , cut", "[PRIVATE_KEY], cut"),
        ("use sk-proj-" + "a1B2" * 10 + " here", "use [API_KEY] here"),
        ("password = tr0ub4dor&3x ok", "password = [PASSWORD] ok"),
        ("password: <your password here>", "password: <your password here>"),
        ("the password: required", "the password: required"),
        ("order 2024-11-23, 1,234.56 and 12345", "order 2024-11-23, 1,234.56 and 12345"),
        ("", ""),
    ],
)
def test_what_is_found_is_masked_whole(text: str, masked: str) -> None:
    assert mask(text, set(kinds()))[0] == masked


def test_only_the_kinds_asked_for_are_masked() -> None:
    text = "a@b.example +49 30 901820"
    masked, found = mask(text, {"phone"})
    assert (masked, dict(found)) == ("a@b.example [PHONE]", {"phone": 1})
    assert dict(personal_kinds(text)) == {"email": 1, "phone": 1}


def test_a_text_that_is_masked_holds_nothing_more_to_mask() -> None:
    text = f"a@b.example {KEY} 4012888888881881 password=abcDEF123456"
    masked, found = mask(text, set(kinds()))
    assert sum(found.values()) == 4
    assert personal_kinds(masked) == {}


def test_many_places_in_one_text_are_all_found() -> None:
    assert personal_kinds("a@b.example +49 30 901820\n" * 500) == {"email": 500, "phone": 500}
    assert personal_kinds("-----BEGIN PRIVATE KEY-----\n" * 500) == {"private_key": 500}
