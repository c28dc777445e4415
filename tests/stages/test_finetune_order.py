"""finetune: which rows a step trains on is the same for any number of processes, and wherever a run goes on from."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.finetune.config import Strategy, World
from stages.finetune.order import Order, order_of, total_steps, turns
from tests.stages.finetune_section import section

counts = st.integers(1, 60)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Any order, also with fewer rows than a batch has."""
    part, parts, ranks = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Order(draw(st.integers(0, 2**32)), draw(counts), part * parts * ranks, parts, ranks)


@settings(deadline=None)
@given(orders())
def test_every_pass_is_a_permutation_and_the_next_another(order: Order) -> None:
    passes = 3
    steps = -(-passes * order.rows // order.batch_size)
    drawn = list(chain.from_iterable(order.step(step) for step in range(steps)))
    turns = [tuple(drawn[turn * order.rows : (turn + 1) * order.rows]) for turn in range(passes)]
    assert all(sorted(turn) == list(range(order.rows)) for turn in turns)
    assert order.rows < 12 or len(set(turns)) == passes


@settings(deadline=None)
@given(orders(), st.integers(0, 40))
def test_the_parts_of_all_processes_are_exactly_the_step(order: Order, step: int) -> None:
    found = [order.parts_of(step, rank) for rank in range(order.ranks)]
    assert {len(parts) for parts in found} == {order.parts}
    assert {len(part) for parts in found for part in parts} == {order.part}
    taken = [row for number in range(order.parts) for parts in found for row in parts[number]]
    assert taken == order.step(step)  # in the order of the accumulation, so that sums differ by rounding only


@settings(deadline=None)
@given(orders(), st.integers(0, 40))
def test_a_step_is_the_same_for_any_number_of_processes_and_parts(order: Order, step: int) -> None:
    alone = Order(order.seed, order.rows, order.batch_size, 1, 1)
    assert alone.step(step) == order.step(step) == list(chain(*alone.parts_of(step, 0)))


@settings(deadline=None)
@given(orders(), st.integers(0, 20), st.integers(0, 20))
def test_what_remains_is_the_end_of_the_whole(order: Order, first: int, more: int) -> None:
    for rank in range(order.ranks):
        whole = list(order.batches(0, first + more, rank))
        assert whole[first * order.parts :] == list(order.batches(first, first + more, rank))
        assert len(whole) == (first + more) * order.parts


def test_another_seed_is_another_order() -> None:
    assert Order(1, 50, 10, 1, 1).step(0) != Order(2, 50, 10, 1, 1).step(0)


def test_the_order_of_a_section_counts_its_processes() -> None:
    cfg = section(batch_size=24, gradient_accumulation=2, world=World("w", 2, 3, Strategy.ddp))
    order = order_of(cfg, 100)
    assert (order.ranks, order.parts, order.part, order.seed) == (6, 2, 2, cfg.seed)


@pytest.mark.parametrize(
    ("epochs", "rows", "batch", "steps"),
    [(1.0, 12, 2, 6), (1.0, 13, 2, 7), (2.5, 10, 4, 7), (0.01, 10, 4, 1), (2.2, 25, 1, 55), (4.4, 25, 2, 55)],
)
def test_epochs_become_steps_that_reach_every_row(epochs: float, rows: int, batch: int, steps: int) -> None:
    assert total_steps(section(max_steps=None, epochs=epochs, batch_size=batch), rows) == steps


@given(st.integers(1, 40), counts, st.integers(1, 9))
def test_tenths_of_a_pass_are_counted_exactly(tenths: int, rows: int, batch: int) -> None:
    steps = total_steps(section(max_steps=None, epochs=tenths / 10, batch_size=batch), rows)
    seen, wanted = steps * batch, Fraction(tenths, 10) * rows
    assert seen >= wanted and (steps == 1 or seen - batch < wanted)


@pytest.mark.parametrize(("steps", "epochs"), [(None, None), (5, 1.0)])
def test_both_or_neither_of_steps_and_epochs_are_one_clear_line(
    steps: int | None, epochs: float | None
) -> None:
    message = f"finetune.max_steps={steps} and finetune.epochs={epochs}: give one, the other is null"
    with pytest.raises(ValueError, match=message):
        total_steps(section(max_steps=steps, epochs=epochs), 10)


@settings(deadline=None)
@given(counts, st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_every_held_out_row_is_taken_once_and_evenly_where_asked(
    rows: int, size: int, ranks: int, even: bool
) -> None:
    found = list(turns(rows, size, ranks, even=even))
    assert [row for turn in found for share in turn for row in share] == list(range(rows))
    for turn in found:
        assert len(turn) == ranks and turn[0] and max(map(len, turn)) <= size
        assert not even or len({len(share) for share in turn if share}) == 1
    plain = list(turns(rows, size, ranks, even=False))
    if rows % size == 0 or rows < size or ranks == 1:  # as it was before: sums keep their last bit
        assert found == plain
    assert len(found) <= len(plain) + 1
