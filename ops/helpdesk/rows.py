"""Rows of the corpus: conversations, whole transcripts for pretraining, and labelled pairs for the judge."""

from __future__ import annotations

from random import Random
from typing import Any

from ops.helpdesk.grammar import expand
from ops.helpdesk.replies import FLAWS, GRADES, answer, reply
from ops.helpdesk.tickets import Ticket, draw_ticket

Row = dict[str, Any]
BOTH_FLAWED = 0.15  # of labelled pairs: the better answer is itself only of the second grade

LOGS = (
    "[ticket {order}|new ticket] [by mail|by phone|by chat|from the form]\n{text}\n"
    "filed under {intent} / {product} / {priority} / {sentiment}\nagent: {reply}",
    "desk log [{day}|{order}]. customer wrote: {text}\n"
    "intent {intent}, product {product}, priority {priority}, sentiment {sentiment}\nwe wrote: {reply}",
    "[inbox|shift notes|hotline]: {text}\n"
    'intent: "{intent}"\nproduct: "{product}"\npriority: "{priority}"\nsentiment: "{sentiment}"\n'
    "answered: {reply}",
)


def distinct_tickets(rng: Random, count: int, seen: set[str]) -> list[Ticket]:
    """`count` tickets whose texts are not in `seen` (compared without case and marks); `seen` grows by them."""
    tickets: list[Ticket] = []
    while len(tickets) < count:
        ticket = draw_ticket(rng)
        key = "".join(filter(str.isalnum, ticket.text.lower()))
        if key not in seen:
            seen.add(key)
            tickets.append(ticket)
    return tickets


def conversation(ticket: Ticket, row_id: str, rng: Random) -> Row:
    """A row of train.jsonl or test.jsonl: the ticket, then the line of JSON and the reply."""
    content = f"{ticket.fields.line()}\n{reply(ticket.fields, rng)}"
    messages = [{"role": "user", "content": ticket.text}, {"role": "assistant", "content": content}]
    return {"id": row_id, "messages": messages, "meta": {"style": ticket.style}}


def transcript(ticket: Ticket, rng: Random) -> Row:
    """The same ticket as the desk's log has it: no chat turns and no JSON."""
    fields = ticket.fields
    slots = {"intent": fields.intent, "product": fields.product, "priority": fields.priority}
    slots |= {"sentiment": fields.sentiment, "text": ticket.text, "reply": reply(fields, rng)}
    return {"text": "\n".join(expand(line, rng, **slots) for line in rng.choice(LOGS).split("\n"))}


def labelled_pair(ticket: Ticket, row_id: str, split: str, label: str, rng: Random) -> Row:
    """A row of labels/: two answers of different grades, the better one under `label`; `kind` is the flaw."""
    kind = rng.choice(FLAWS)
    better = "vague" if GRADES[kind] < GRADES["vague"] and rng.random() < BOTH_FLAWED else "good"
    good, bad = answer(ticket.fields, ticket.text, better, rng), answer(ticket.fields, ticket.text, kind, rng)
    first, second = (good, bad) if label == "A" else (bad, good)
    row = {"id": row_id, "split": split, "question": ticket.text, "answer_a": first, "answer_b": second}
    return row | {"label": label, "kind": kind}


def labelled_pairs(split: str, tickets: list[Ticket], rng: Random) -> list[Row]:
    """A labelled pair for each ticket, half of them (and the odd one) labelled A."""
    labels = ["A", "B"] * (len(tickets) // 2) + ["A"] * (len(tickets) % 2)
    rng.shuffle(labels)
    pairs = enumerate(zip(tickets, labels, strict=True))
    return [labelled_pair(ticket, f"{split}-{i:04}", split, label, rng) for i, (ticket, label) in pairs]


def judging_transcripts(pair: Row, system: str, template: str) -> list[Row]:
    """A labelled pair as the judge will be asked, in both orders, with the right verdict."""
    swapped = {"answer_a": pair["answer_b"], "answer_b": pair["answer_a"], "question": pair["question"]}
    other = "B" if pair["label"] == "A" else "A"
    return [_judging(system, template, pair, pair["label"]), _judging(system, template, swapped, other)]


def _judging(system: str, template: str, pair: Row, verdict: str) -> Row:
    slots = {name: pair[name] for name in ("question", "answer_a", "answer_b")}
    turns = (("system", system), ("user", template.format(**slots)), ("assistant", verdict))
    return {"messages": [{"role": role, "content": content} for role, content in turns if content]}


def preferences(pairs: list[Row]) -> list[Row]:
    """Labelled pairs as rows of the shape conf/source/preference.yaml."""
    return [
        {
            "id": pair["id"],
            "prompt": pair["question"],
            "chosen": pair["answer_a" if pair["label"] == "A" else "answer_b"],
            "rejected": pair["answer_b" if pair["label"] == "A" else "answer_a"],
            "meta": {"kind": pair["kind"]},
        }
        for pair in pairs
    ]
