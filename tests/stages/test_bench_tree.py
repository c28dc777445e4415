"""Trees of shared prefixes: each place sees its own sequence, and the numbers are those of each sequence alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.bench.tree import Row, plan

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
ENDS = st.lists(st.tuples(TOKENS, st.integers(1, 12)), min_size=1, max_size=14)


def seen(row: Row, place: int) -> list[int]:
    """Tokens of the row that a place sees, in order."""
    return [int(row.tokens[other]) for other in range(place + 1) if place < row.ends[other]]


@given(ENDS, st.integers(1, 40), st.integers(1, 30))
def test_each_place_sees_exactly_its_own_sequence(
    drawn: list[tuple[list[int], int]], budget: int, most: int
) -> None:
    sequences = [np.array(tokens, np.int64) for tokens, _ in drawn]
    counts = [min(count, len(tokens)) for tokens, count in drawn]
    cache: list[int] = []
    done = []
    for row in plan(sequences, counts, budget, most):
        assert row.cached <= len(cache)
        cache = cache[: row.cached]
        for member, places in zip(row.members, row.scored, strict=True):
            own, begin = sequences[member].tolist(), len(sequences[member]) - counts[member]
            for number, place in enumerate(places.tolist()):
                assert cache + seen(row, place) == own[: begin + number + 1]
                assert row.positions[place] == begin + number
        assert len({*row.members}) == 1 or len(row.tokens) <= budget
        done += row.members
        cache += row.tokens.tolist()
    assert sorted(done) == list(range(len(sequences)))


def test_what_all_share_is_read_once_and_each_tokens_once() -> None:
    """Ten questions after one stem of 50 tokens, four answers each; rows of about two questions."""
    stem = list(range(100, 150))
    questions = [[*stem, 200 + number, *range(5)] for number in range(10)]
    sequences = [np.array([*question, 300 + answer]) for question in questions for answer in range(4)]
    rows = plan(sequences, [1] * 40, 80, 1000)
    assert len(rows) > 2 and [row.cached for row in rows[1:]] == [50] * (len(rows) - 1)
    assert sum(len(row.tokens) for row in rows) == 50 + 10 * 6 + 40


KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2}, "qwen2": {"num_key_value_heads": 2}, "gpt_neox": {},
    "phi3": {"pad_token_id": 0}, "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 16}, "falcon": {},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    "bloom": {"n_layer": 2, "n_head": 4}, "mamba": {},
}  # fmt: skip
TREES = set(KINDS) - {"bloom", "mamba"}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def model_of(kind: str, more: dict[str, Any] | None = None) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    sizes = {} if kind == "gpt2" else SIZE
    own = {"vocab_size": 90, "bos_token_id": 0, "eos_token_id": 1} | sizes | (more or KINDS[kind])
    config = AutoConfig.for_model(kind, **own)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # so that a wrong mask shows
    return model


def asked() -> list[tuple[list[int], list[int]]]:
    """Few-shot stems of two lengths, questions, long and one-token answers, prefixes of others, one twice."""
    draw = random.Random(1)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(90) for _ in range(count)]

    stem, pairs = tokens(40), []
    for number in range(8):
        context = (stem if number % 2 else stem[:14]) + tokens(draw.randrange(2, 12))
        pairs += [(context, tokens(draw.randrange(1, 6))) for _ in range(3)]
        pairs += [(context, [answer]) for answer in range(3)]
    return [*pairs, (stem, tokens(2)), (stem[:7], stem[7:9]), ([5], stem), pairs[0]]


def alone(model: Any, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """(nats, greedy) of each, by a pass of its own."""
    import torch

    expected = []
    for context, answer in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([(context + answer)[:-1]])).logits[0, -len(answer) :]
        likely = logits.log_softmax(-1)[range(len(answer)), answer].sum()
        expected.append((float(likely), logits.argmax(-1).tolist() == answer))
    return expected


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_each_sequence_alone(kind: str) -> None:
    from stages.bench.likelihood import Likelihood

    model, pairs = model_of(kind), asked()
    expected = alone(model, pairs)
    for budget in (8, 60, 1000):
        engine = Likelihood(model, budget)
        assert engine.trees == (kind in TREES)
        found = engine.score(pairs, lambda _: None)
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-3)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


TURN = 32
LONGROPE = {
    "pad_token_id": 0, "max_position_embeddings": 256, "original_max_position_embeddings": TURN,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0, 9.0, 20.0, 40.0]},
}  # fmt: skip


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("budget", [8, 60, 1000])
def test_sequences_on_both_sides_of_where_longrope_turns(budget: int, trees: bool) -> None:
    """A pass that reads one beyond it turns the positions of all that it reads."""
    from stages.bench.likelihood import Likelihood

    model, pairs = model_of("phi3", LONGROPE), asked()
    lengths = [len(context + answer) - 1 for context, answer in pairs]
    assert min(lengths) <= TURN < max(lengths)
    engine = Likelihood(model, budget)
    assert engine.trees and engine.turn == TURN
    engine.trees = trees
    found, expected = engine.score(pairs, lambda _: None), alone(model, pairs)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_greedy_answers_across_where_longrope_turns_are_those_of_generate(
    tmp_path: Path, tiny_model: Path
) -> None:
    import torch
    from transformers import AutoTokenizer

    from stages.bench.config import Backend, Precision, Variant
    from stages.bench.model import Scorer
    from stages.bench.prompts import Prompts
    from tests.stages.test_bench import section

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path)
    model_of("phi3", {**LONGROPE, "vocab_size": len(tokenizer)}).save_pretrained(tmp_path)
    scorer = Scorer(section("x"), Variant(str(tmp_path), "", Precision.fp32, Backend.own, {}))
    prompts = [list(range(5, 5 + count)) for count in (4, 26, 40)]
    found = scorer.complete(Prompts([""] * 3, prompts, [], 12, {}, lambda _: None))
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        written = scorer.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, pad_token_id=0
        )
        assert answer == tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("kind", sorted(TREES))
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_greedy_answers_are_those_of_generate(kind: str, rows: int) -> None:
    import torch

    from stages.bench.generation import Generation

    model = model_of(kind)
    prompts = [context for context, _ in asked()[::3]]
    prompts[-1] = prompts[0]  # twice the same
    found = Generation(model, None, {1}, rows).complete(prompts, [], 12, lambda _: None)
    for prompt, answer in zip(prompts, found, strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt])
            whole = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=12,
                pad_token_id=0,
                eos_token_id=1,
            )[0, len(prompt) :].tolist()
        assert answer == (whole[: whole.index(1)] if 1 in whole else whole)


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_memory_that_runs_out_halves_the_row_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str
) -> None:
    import torch

    from stages.bench.likelihood import Likelihood

    model, pairs = model_of("llama"), asked()
    engine = Likelihood(model, 256)
    calm = engine.score(pairs, lambda _: None)
    forward = model.forward

    def small(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] > 100:
            if device == "gpu":
                raise torch.OutOfMemoryError("CUDA out of memory")
            torch.empty(1 << 50, dtype=torch.uint8)  # the allocator's own error
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", small)
    found = engine.score(pairs, lambda _: None)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in calm], abs=1e-3)
    assert engine.tokens == 64 and "bench.batch_tokens is halved to 64" in caplog.text


def test_memory_that_runs_out_halves_the_batch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from stages.bench.generation import Generation

    model, prompts = model_of("llama"), [context for context, _ in asked()[::3]]
    engine = Generation(model, None, {1}, 12)
    calm = engine.complete(prompts, [], 6, lambda _: None)
    forward = model.forward

    def small(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[0] > 4:
            torch.empty(1 << 50, dtype=torch.uint8)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", small)
    assert engine.complete(prompts, [], 6, lambda _: None) == calm
    assert engine.rows == 3 and "bench.batch_size is halved to 3" in caplog.text


def test_sliding_windows_are_found(tmp_path: Path) -> None:
    from transformers import AutoConfig

    from stages.bench.likelihood import sliding_window

    found = {
        kind: sliding_window(AutoConfig.for_model(kind, **KINDS[kind]))
        for kind in ("llama", "mistral", "gemma3_text")
    }
    assert found == {"llama": None, "mistral": 16, "gemma3_text": 16}
