"""bench asks, and expects, what prepare trained on: tools, calls, reasoning and the date, by the chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.bench.__main__ import main
from stages.bench.evaluation import load_tasks
from stages.bench.model import Scorer
from stages.bench.turns import ChatTemplate
from stages.common.prompt import DATE, Message, Prompt, with_prompt
from stages.prepare.tokens.template import Template
from tests.stages.chat import CALL, CALLING, WEATHER, turn
from tests.stages.test_bench import direct_nats, items, section, variant, write

SYSTEM = Prompt("p", "You know the weather.", [], 12)
# What Qwen's and Hermes' templates do, in short: tools in the system turn, calls as JSON, reasoning before the answer
TOOLS = (
    "{{ '<|system|>' + strftime_now('%d %b %Y') + (tools|tojson if tools else '') + '<|end|>' }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['reasoning_content'] %}{{ '<think>' + m['reasoning_content'] + '</think>' }}{% endif %}{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ '<call>' + (call['function']|tojson) + '</call>' }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ROWS: list[tuple[list[Message], list[dict[str, Any]]]] = [
    (CALLING, [WEATHER]),
    ([turn("user", "And now?"), turn("assistant", "", tool_calls=[CALL])], [WEATHER]),
    ([turn("user", "Why?"), turn("assistant", "So.", reasoning_content="Hm.")], []),
    ([turn("user", "Hello?"), turn("assistant", "Yes.")], []),
]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """The tiny model with that template, and the rows as prepare writes them."""
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "model")
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.chat_template = TOOLS
    tokenizer.save_pretrained("model")
    write(
        [
            {"id": f"t{number}", "messages": messages, "meta": {}, **({"tools": tools} if tools else {})}
            for number, (messages, tools) in enumerate(ROWS)
        ]
    )
    return Path("model")


def trained(model: Path) -> list[tuple[str, str]]:
    """(prompt, answer) of each row's last turn, where prepare finds them in what it renders."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    template, found = Template(tokenizer, tokenizer.chat_template), []
    for messages, tools in ROWS:
        turns = with_prompt(SYSTEM, messages, examples=True)
        (document,) = template.documents(turns, tools, [len(turns) - 1])
        ((begin, end),) = document.spans
        found.append((document.text[:begin], document.text[begin:end].removesuffix("<|end|>")))
    return found


def test_what_is_asked_and_expected_is_what_was_trained(model: Path) -> None:
    main(section("heldout_loss", prompt=SYSTEM), "base", variant(model))
    rows, expected = items(), trained(model)
    assert all(DATE.strftime("%d %b %Y") in prompt for prompt, _ in expected)
    assert '"weather"' in expected[0][0]
    assert expected[1][1] == "<call>" + json.dumps(CALL["function"]) + "</call>"
    assert expected[2][1] == "<think>Hm.</think>So."
    for row, (prompt, target) in zip(rows, expected, strict=True):
        assert row["target"] == target
        assert row["loglikelihoods"][0] == pytest.approx(direct_nats(model, prompt, target), abs=1e-3)


def test_what_is_generated_is_compared_with_the_answer_and_its_calls_but_not_with_thoughts(
    model: Path,
) -> None:
    cfg = section("gsm8k_match", prompt=SYSTEM)
    [task] = load_tasks(cfg)["tasks"].values()
    scorer = Scorer(cfg, variant(model))
    task.speak(scorer.template, scorer.end)
    calls = trained(model)[1][1]
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == [
        ROWS[0][0][-1]["content"],
        calls,
        "So.",
        "Yes.",
    ]


def test_an_answer_that_no_prompt_begins_is_one_line(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TOOLS.replace("<|assistant|>", "<|assistant|>\\n")
    with pytest.raises(ValueError, match=r"does not begin an answer .* as it asks for one") as error:
        ChatTemplate(tokenizer, "m").answered(
            [dict(turn("user", "a"))], dict(turn("assistant", "b")), [], "<|end|>"
        )
    assert "\n" not in str(error.value)
