"""One ticket: fields drawn first, then a text from which a careful reader gets about 98 % of each field."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from ops.helpdesk import phrases, tone
from ops.helpdesk.fields import INTENTS, NEW_PRODUCTS, PRODUCTS, Fields, draw_fields, name_of
from ops.helpdesk.grammar import expand, join, surface

STYLES = ("formal", "terse", "chatty", "rambling", "sms", "typos")
DRIFTED_PRODUCTS = PRODUCTS + tuple(NEW_PRODUCTS) * 3
UNCLEAR = 0.04  # of tickets, per field: a cue that two values share, so half of these cannot be read
OTHER_INTENT = 0.12  # names a second intent without asking for it
OTHER_PRODUCT, OTHER_PRODUCT_RAMBLING = 0.12, 0.6  # names a second product


@dataclass(frozen=True)
class Ticket:
    """A customer's message, what it is about, and what the served model of the time would read in it."""

    text: str
    style: str
    fields: Fields
    as_served: Fields


def draw_ticket(rng: Random) -> Ticket:
    """One ticket of the reference distribution: the training data, the test and the stable windows."""
    fields, style = draw_fields(rng), rng.choice(STYLES)
    priority, sentiment = _cue(fields, "priority", rng), _cue(fields, "sentiment", rng)
    text = _compose(fields, style, [priority, sentiment], _asides(fields, style, rng), rng)
    return Ticket(text, style, fields, fields)


def draw_drifted_ticket(rng: Random) -> Ticket:
    """One ticket after the drift: new products, longer texts, and slang whose mood has flipped.

    `as_served` follows the old concept: slang means what it meant, a new product is taken for an old one.
    """
    fields, style = draw_fields(rng, DRIFTED_PRODUCTS), rng.choice(("chatty", "rambling", "sms", "rambling"))
    sentiment, seen = _cue(fields, "sentiment", rng), fields.sentiment
    if fields.sentiment in tone.FLIPPED and rng.random() < 0.7:
        sentiment = expand(rng.choice(tone.FLIPPED[fields.sentiment]), rng)
        seen = "negative" if fields.sentiment == "positive" else "positive"
    asides = [*_asides(fields, style, rng), rng.choice(tone.LONG_FILLERS)]
    text = _compose(fields, style, [_cue(fields, "priority", rng), sentiment], asides, rng)
    product = NEW_PRODUCTS.get(fields.product, fields.product)
    return Ticket(text, style, fields, replace(fields, product=product, sentiment=seen))


def _cue(fields: Fields, name: str, rng: Random) -> str:
    value = getattr(fields, name)
    book, unclear = (
        (tone.PRIORITY, tone.UNCLEAR_PRIORITY)
        if name == "priority"
        else (tone.SENTIMENT, tone.UNCLEAR_SENTIMENT)
    )
    shared = [cue for one, other, cue in unclear if value in (one, other)]
    if rng.random() < UNCLEAR:
        return rng.choice(shared)
    return expand(rng.choice(book[value]), rng)


def _asides(fields: Fields, style: str, rng: Random) -> list[str]:
    asides = []
    if rng.random() < (OTHER_PRODUCT_RAMBLING if style == "rambling" else OTHER_PRODUCT):
        other = rng.choice([product for product in PRODUCTS if product != fields.product])
        asides.append(expand(rng.choice(phrases.DISTRACTOR), rng, o=name_of(other, rng)))
    if rng.random() < OTHER_INTENT:
        others = [
            i for i in INTENTS if i != fields.intent and (fields.intent, i) not in phrases.CONTRADICTIONS
        ]
        asides.append(expand(rng.choice(phrases.MENTION[rng.choice(others)]), rng))
    if style == "rambling" or (style in ("chatty", "formal") and rng.random() < 0.3):
        asides.append(expand(rng.choice(tone.FILLER), rng))
    return asides


def _compose(fields: Fields, style: str, cues: list[str], asides: list[str], rng: Random) -> str:
    other = rng.choice([product for product in PRODUCTS if product != fields.product])
    problem = expand(
        rng.choice(phrases.PROBLEM[fields.intent]),
        rng,
        p=name_of(fields.product, rng),
        o=name_of(other, rng),
    )
    after = [*cues, *asides]
    rng.shuffle(after)
    lead = [after.pop()] if rng.random() < 0.25 else []
    opening, closing = (
        expand(rng.choice(tone.OPENING[style]), rng),
        expand(rng.choice(tone.CLOSING[style]), rng),
    )
    return surface(join([opening, *lead, problem, *after, closing], rng), style, rng)
