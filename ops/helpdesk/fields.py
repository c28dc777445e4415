"""What a ticket is about: the four fields to be triaged, their values and how often each is drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from random import Random

INTENTS = ("billing", "refund", "delivery", "technical", "account", "cancellation", "exchange", "question")
PRODUCTS = (
    "router", "headphones", "laptop", "printer", "camera", "phone", "tablet", "speaker", "monitor", "watch",
)  # fmt: skip
PRIORITIES = ("low", "normal", "high")
SENTIMENTS = ("negative", "neutral", "positive")
VALUES: dict[str, tuple[str, ...]] = {
    "intent": INTENTS, "product": PRODUCTS, "priority": PRIORITIES, "sentiment": SENTIMENTS,
}  # fmt: skip

# Products that exist only in the drifted window, and the old one that the served model takes each for.
NEW_PRODUCTS = {"drone": "camera", "vacuum": "speaker", "thermostat": "router", "keyboard": "laptop"}

# What people call a product: most use the first name.
NAMES: dict[str, tuple[str, ...]] = {
    "router": ("router", "wifi router", "wifi box", "modem"),
    "headphones": ("headphones", "headset", "earphones"),
    "laptop": ("laptop", "notebook", "portable computer"),
    "printer": ("printer", "inkjet", "laser printer"),
    "camera": ("camera", "digital camera", "webcam"),
    "phone": ("phone", "smartphone", "handset"),
    "tablet": ("tablet", "drawing tablet", "reading tablet"),
    "speaker": ("speaker", "soundbar", "bluetooth speaker"),
    "monitor": ("monitor", "screen", "display"),
    "watch": ("watch", "smartwatch", "fitness watch"),
    "drone": ("drone", "quadcopter", "flying camera drone"),
    "vacuum": ("vacuum", "robot vacuum", "robo cleaner"),
    "thermostat": ("thermostat", "smart thermostat", "heating control"),
    "keyboard": ("keyboard", "mechanical keyboard", "gaming keyboard"),
}


def name_of(product: str, rng: Random) -> str:
    """A name that customers use for `product`."""
    first, *others = NAMES[product]
    return first if rng.random() < 0.6 else rng.choice(others)


@dataclass(frozen=True)
class Fields:
    """The structured part of an answer, in the order in which it is written."""

    intent: str
    product: str
    priority: str
    sentiment: str

    def line(self) -> str:
        """One line of JSON, as the assistant writes it."""
        return json.dumps(asdict(self))


def draw_fields(rng: Random, products: tuple[str, ...] = PRODUCTS) -> Fields:
    """Independent fields: intent and product uniform, priority and sentiment as a desk sees them."""
    return Fields(
        rng.choice(INTENTS),
        rng.choice(products),
        rng.choices(PRIORITIES, (25, 45, 30))[0],
        rng.choices(SENTIMENTS, (40, 35, 25))[0],
    )
