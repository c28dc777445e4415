"""The agent's answer to a ticket, and worse answers of known kinds for the judge's labels."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from ops.helpdesk.fields import INTENTS, PRODUCTS, Fields
from ops.helpdesk.grammar import expand

GREETING = {
    "negative": "[We are sorry for the trouble.|We apologise for this.]",
    "neutral": "[Thank you for writing to us.|Thanks for your message.]",
    "positive": "[Thank you for the kind words!|How nice to hear from you!]",
}
STEP = {
    "billing": "[We will check the invoice of your {p}|We are checking the charge for your {p}]",
    "refund": "[We will pay out the refund for your {p}|The refund for your {p} is being paid out]",
    "delivery": "[We will trace the parcel with your {p}|We are asking the courier where your {p} is]",
    "technical": "[Please restart your {p} and tell us what it shows|Please reset your {p} and send "
    "us the error]",
    "account": "[Please use the new login link for your {p}|We have sent a new login link for your {p}]",
    "cancellation": "[We will cancel the order of your {p}|We have stopped the order of your {p}]",
    "exchange": "[We will swap your {p} for a new one|Please send your {p} back, a new one follows]",
    "question": "[Please see the attached guide of your {p}|We have attached the guide of your {p}]",
}
WHEN = {
    "high": "[You hear from us today.|We will be back to you today.]",
    "normal": "[You hear from us within two days.|We will be back to you within two days.]",
    "low": "[You hear from us next week.|We will be back to you next week.]",
}
RUDE = (
    "[That is not our problem.|You broke it yourself.|Do not waste our time.] [Read the manual|Ask "
    "someone else|Go "
    "away], [we have better things to do|you people never learn|it is not that hard].",
    "[What a stupid message.|Another silly complaint.] Your {p} is [your own fault|not our "
    "business], [deal with "
    "it|stop writing to us].",
)
VAGUE = (
    "[Someone|One of us] may look at it [some time|at some point]. [We will see.|Maybe it helps.]",
    "[We got something from you.|It could be many things.] [Perhaps it solves itself.|Things like "
    "that happen.]",
)
OFF_TOPIC = (
    "[Our shop opens at nine|The canteen serves soup|Our summer sale starts] on {day}. [Bring your "
    "friends!|It is "
    "sunny here.|Everyone is welcome.]",
    "[Did you know that cats sleep all day?|The football match was great.|Our choir sings in "
    "{month}.] [See you "
    "there!|What fun!]",
)
# How bad: an answer of a lower grade loses against one of a higher grade.
GRADES = {
    "good": 3, "vague": 2, "wrong_product": 1, "wrong_next_step": 1, "rude": 1, "off_topic": 0,
    "truncated": 0, "garbled": 0, "echo": 0,
}  # fmt: skip
FLAWS = tuple(kind for kind in GRADES if kind != "good")


def reply(fields: Fields, rng: Random) -> str:
    """The right answer: greeting by mood, next step by intent naming the product, date by priority."""
    parts = (GREETING[fields.sentiment], STEP[fields.intent] + ".", WHEN[fields.priority])
    return " ".join(expand(part, rng, p=fields.product) for part in parts)


def answer(fields: Fields, ticket: str, kind: str, rng: Random) -> str:
    """An answer of the given kind (a key of GRADES) to `ticket`."""
    if kind == "wrong_product":
        return reply(replace(fields, product=_other(PRODUCTS, fields.product, rng)), rng)
    if kind == "wrong_next_step":
        return reply(replace(fields, intent=_other(INTENTS, fields.intent, rng)), rng)
    if kind in ("rude", "vague", "off_topic"):
        book = {"rude": RUDE, "vague": VAGUE, "off_topic": OFF_TOPIC}[kind]
        return expand(rng.choice(book), rng, p=fields.product)
    if kind == "echo":
        return " ".join(ticket.split()[:20])
    words = reply(fields, rng).split()
    if kind == "truncated":
        return " ".join(words[: rng.randint(3, 9)])[:-2]
    if kind == "garbled":
        rng.shuffle(words)
    return " ".join(words)


def _other(values: tuple[str, ...], value: str, rng: Random) -> str:
    return rng.choice([candidate for candidate in values if candidate != value])
