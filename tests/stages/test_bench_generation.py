"""Where an answer ends: the same in our own batches and by transformers' `generate`, which takes over at times."""

from __future__ import annotations

from pathlib import Path

from stages.bench.load import settings
from stages.bench.model import Scorer
from stages.bench.prompts import Prompts
from tests.stages.test_bench import section, variant


def test_a_stop_string_begins_behind_the_prompt(tiny_model: Path) -> None:
    """A prompt that ends with an empty line's half, and a model that writes the other half."""
    scorer = Scorer(section("helpdesk_triage"), variant(tiny_model))
    text = "the router is broken"
    tokens = scorer.tok_encode(text)

    def both(stops: list[str]) -> list[list[int]]:
        asked = Prompts([text], [tokens], stops, 12, {}, lambda count: None)
        (own,) = scorer.generation.complete(asked.tokens, stops, asked.most, asked.seen)
        (other,) = scorer.generation.sample(asked)
        assert own == other
        return [own]

    (whole,) = both([])
    first, more = (scorer.tokenizer.decode(whole[:end]) for end in (1, 3))
    assert len(whole) == 12
    assert both([text[-1] + first]) == [whole]
    assert both([more]) == [whole[:3]]


def test_neutral_settings_and_names_of_a_folders_own_are_no_settings() -> None:
    """Or every prompt would be generated alone, or refused."""
    from transformers import GenerationConfig

    told = {
        "repetition_penalty": 1.0,
        "num_beams": 1,
        "do_sample": True,
        "max_new_tokens": 9,
        "eos_token_id": [1],
    }
    assert settings(GenerationConfig(**told, chat_format="chatml")) == {}
    assert settings(GenerationConfig(**(told | {"repetition_penalty": 1.1, "top_p": 0.8}))) == {
        "repetition_penalty": 1.1,
        "top_p": 0.8,
    }
