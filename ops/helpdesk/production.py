"""Inference logs by window, as a served model would have left them: simulated, and called so."""

from __future__ import annotations

from dataclasses import asdict
from random import Random

from ops.helpdesk.fields import VALUES, Fields
from ops.helpdesk.replies import reply
from ops.helpdesk.rows import Row
from ops.helpdesk.tickets import draw_drifted_ticket, draw_ticket

ACCURACY = 0.94  # of the served model, per field, against what it believes to be right
FEEDBACK = 0.4  # of rows whose true fields came back later


def window(name: str, seed: int, count: int, *, drifted: bool = False) -> list[Row]:
    """`count` logged requests, drawn from the reference distribution or from the drifted one.

    The same arguments give the same rows; other seeds give further draws of the same distribution.
    """
    rng = Random(f"{seed}/production/{name}")
    draw = draw_drifted_ticket if drifted else draw_ticket
    rows = []
    for number in range(count):
        ticket = draw(rng)
        served = Fields(
            **{field: _served(field, value, rng) for field, value in asdict(ticket.as_served).items()}
        )
        feedback = asdict(ticket.fields) if rng.random() < FEEDBACK else None
        output = f"{served.line()}\n{reply(served, rng)}"
        row: Row = {"id": f"{name}-{number:04}", "window": name, "input": ticket.text}
        rows.append(row | {"output": output, "feedback": feedback})
    return rows


def _served(name: str, value: str, rng: Random) -> str:
    if rng.random() < ACCURACY:
        return value
    return rng.choice([other for other in VALUES[name] if other != value])
