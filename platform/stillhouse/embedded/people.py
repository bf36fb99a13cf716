"""The people of the embedded platform, so that a fresh one can be signed in to."""

import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from stillhouse.embedded.home import Home, write_private


@dataclass(frozen=True)
class Person:
    """One account: who signs in where, as what."""

    key: str
    """`expert`, `lead` or `outsider`: what `people.json` and `demo.env` call this person."""
    name: str
    email: str
    workspace: str
    """Slug."""
    role: str


EXPERT = Person("expert", "Erin Expert", "erin@acme.example", "acme", "expert")
LEAD = Person("lead", "Lee Lead", "lee@acme.example", "acme", "lead")
OUTSIDER = Person("outsider", "Olga Outsider", "olga@globex.example", "globex", "expert")
PEOPLE = (EXPERT, LEAD, OUTSIDER)


async def ensure(home: Home, run: Callable[..., Awaitable[str]]) -> None:
    """Make the accounts that are missing. `run` runs a Python command of the set-up (`Supervisor`'s)."""
    if not (home.path / "people.json").exists():
        chosen = {person.key: secrets.token_urlsafe(12) for person in PEOPLE}
        write_private(home.path / "people.json", json.dumps(chosen, indent=1))
    made = home.path / "people.made"
    if made.exists():
        return
    for person in PEOPLE:
        await run(
            *["manage.py", "member", "add", "--workspace", person.workspace, "--email", person.email],
            *["--role", person.role, "--name", person.name, "--password-stdin"],
            stdin=password_of(home, person) + "\n",
        )
    made.touch()


def password_of(home: Home, person: Person) -> str:
    """The password chosen for `person` when this home was made."""
    password: str = json.loads((home.path / "people.json").read_text(encoding="utf-8"))[person.key]
    return password


def how_to_sign_in(home: Home) -> list[str]:
    """Lines for the terminal: who can sign in, and with what."""
    width = max(len(person.email) for person in PEOPLE)
    lines = [
        f"  {person.email:{width}}  {password_of(home, person)}   {person.role} in {person.workspace}"
        for person in PEOPLE
    ]
    return ["", f"Sign in at {home.url} as one of", *lines]
