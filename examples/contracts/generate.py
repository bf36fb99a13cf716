"""Write the contracts dataset: train.jsonl (180 rows) and heldout.jsonl (36 rows of unseen wordings).

Six types of clause, each in five wordings for training and one more that training never sees, each wording
filled six times. The answer is one short thought and one line of JSON. Seeded: the same files every time.

    python examples/contracts/generate.py [FOLDER]
    python examples/contracts/generate.py --more 400 FILE

The second one writes so many more questions in the unseen wordings, each another party and value: for figures
that 36 questions are too few for.
"""

import json
import random
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

SEED = 20261123
FILLS = 6
SYSTEM = "Read the contract clause and return its terms as JSON."

PARTIES = [
    "Tenant",
    "Landlord",
    "Supplier",
    "Buyer",
    "Contractor",
    "Client",
    "Licensee",
    "Distributor",
    "Agency",
    "Lender",
]
DAYS = [7, 10, 14, 15, 20, 21, 28, 30, 45, 60, 90, 120]
YEARS = [1, 2, 3, 4, 5, 6, 7, 8, 10]
PERCENTS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15]
AMOUNTS = [5000, 10000, 20000, 25000, 40000, 50000, 75000, 100000, 250000, 500000]
PLACES = [
    "Denmark",
    "Norway",
    "Ireland",
    "Scotland",
    "Germany",
    "Austria",
    "Ontario",
    "Singapore",
    "Texas",
    "Portugal",
]


@dataclass(frozen=True)
class ClauseType:
    """One type of clause: how it is worded, what varies in it, and what is to be read from it."""

    name: str
    field: str
    """Name of the value in the answer."""
    values: list[int] | list[str]
    train: list[str]
    """Five wordings with {party} and {value}."""
    heldout: str
    """The wording that training never sees."""
    thought: str


CLAUSES = [
    ClauseType(
        name="termination",
        field="days",
        values=DAYS,
        train=[
            "The {party} may end this agreement by giving {value} days' written notice.",
            "This contract can be terminated by the {party} upon {value} days' prior notice in writing.",
            "Termination: the {party} shall notify the other side at least {value} days before leaving.",
            "If the {party} wishes to cancel, a notice period of {value} days applies.",
            "The {party} is free to withdraw from this agreement after {value} days' notice.",
        ],
        heldout="Should the {party} decide to terminate, notice must be sent {value} days in advance.",
        thought="The {party} can end the contract with {value} days of notice.",
    ),
    ClauseType(
        name="payment",
        field="days",
        values=DAYS,
        train=[
            "The {party} shall pay each invoice within {value} days of receipt.",
            "Invoices are due {value} days after they reach the {party}.",
            "Payment terms: net {value} days, payable by the {party}.",
            "All fees must be settled by the {party} no later than {value} days from the invoice date.",
            "The {party} agrees to transfer the invoiced amount within {value} days.",
        ],
        heldout="Every invoice has to be paid by the {party} in no more than {value} days.",
        thought="The {party} has {value} days to pay an invoice.",
    ),
    ClauseType(
        name="interest",
        field="percent",
        values=PERCENTS,
        train=[
            "If payment is late, the {party} owes interest of {value} percent per month.",
            "Overdue amounts carry a charge of {value} percent, to be borne by the {party}.",
            "The {party} shall pay a late fee of {value} percent on any sum not paid in time.",
            "For every month of delay the {party} is charged {value} percent of the open amount.",
            "A surcharge of {value} percent is added when the {party} misses a due date.",
        ],
        heldout="When the {party} pays late, {value} percent interest is added to the overdue sum.",
        thought="The {party} pays interest of {value} percent when a payment is late.",
    ),
    ClauseType(
        name="confidentiality",
        field="years",
        values=YEARS,
        train=[
            "The {party} shall keep all information secret for {value} years after this agreement ends.",
            "Confidential information must not be disclosed by the {party} for a period of {value} years.",
            "For {value} years, the {party} will not share any trade secret with third parties.",
            "The {party}'s duty of confidentiality lasts {value} years.",
            "The {party} undertakes to treat all documents as confidential for {value} years.",
        ],
        heldout="The {party} must not reveal confidential documents to anyone for {value} years.",
        thought="The {party} must keep information secret for {value} years.",
    ),
    ClauseType(
        name="liability",
        field="amount",
        values=AMOUNTS,
        train=[
            "The total liability of the {party} is limited to {value} euros.",
            "In no event shall the {party} be liable for more than {value} euros.",
            "The {party}'s responsibility for damages is capped at {value} euros.",
            "Claims against the {party} may not exceed {value} euros in total.",
            "Damages payable by the {party} are restricted to a maximum of {value} euros.",
        ],
        heldout="The {party} is liable for damages only up to a limit of {value} euros.",
        thought="The {party} is liable for at most {value} euros.",
    ),
    ClauseType(
        name="law",
        field="place",
        values=PLACES,
        train=[
            "This agreement with the {party} is governed by the laws of {value}.",
            "The law of {value} applies to all disputes with the {party}.",
            "The {party} accepts that this contract is construed under the laws of {value}.",
            "Any dispute involving the {party} shall be decided under the law of {value}.",
            "The {party} and its partners submit to the laws and courts of {value}.",
        ],
        heldout="The laws of {value} govern this contract and every dispute with the {party}.",
        thought="The contract with the {party} follows the law of {value}.",
    ),
]


def row(clause: ClauseType, wording: str, party: str, value: int | str) -> dict[str, object]:
    """One chat: the clause as the question, a thought and a line of JSON as the answer."""
    answer = json.dumps({"clause": clause.name, "party": party.lower(), clause.field: value})
    thought = clause.thought.format(party=party, value=value)
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": wording.format(party=party, value=value)},
            {"role": "assistant", "content": f"<think>{thought}</think>\n{answer}"},
        ]
    }


def fills(clause: ClauseType, rng: random.Random) -> list[tuple[str, int | str]]:
    """Six pairs of party and value, none of them twice."""
    return list(zip(rng.sample(PARTIES, FILLS), rng.sample(clause.values, FILLS), strict=True))


def write(path: Path, rows: list[dict[str, object]], rng: random.Random) -> None:
    rng.shuffle(rows)
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), encoding="utf-8")


def more(count: int) -> list[dict[str, object]]:
    """Questions in the unseen wordings, the six types in turns, none twice; fewer where there are no more."""
    rng = random.Random(SEED + 1)
    pairs = [[(party, value) for party in PARTIES for value in clause.values] for clause in CLAUSES]
    for some in pairs:
        rng.shuffle(some)
    rounds = zip_longest(*pairs)
    found = [
        row(clause, clause.heldout, *pair)
        for turn in rounds
        for clause, pair in zip(CLAUSES, turn, strict=True)
        if pair is not None
    ]
    return found[:count]


def main(folder: Path) -> None:
    rng = random.Random(SEED)
    train = [
        row(clause, wording, *fill)
        for clause in CLAUSES
        for wording in clause.train
        for fill in fills(clause, rng)
    ]
    heldout = [row(clause, clause.heldout, *fill) for clause in CLAUSES for fill in fills(clause, rng)]
    write(folder / "train.jsonl", train, rng)
    write(folder / "heldout.jsonl", heldout, rng)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--more"]:
        write(Path(sys.argv[3]), more(int(sys.argv[2])), random.Random(SEED))
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
