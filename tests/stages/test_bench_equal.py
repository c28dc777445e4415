"""bench's engine against the `lm_eval` command line: per item the same answers, scores and log-likelihoods.

Six shapes of task on three architectures with random weights, and numeric match on GSM8K's real questions. Then a
tokenizer that writes a first token, with a chat template: applied or not, and one that writes that token too or not.
"""

from __future__ import annotations

import functools
import json
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.stages.chat import beginning

pytestmark = pytest.mark.slow
GSM8K = Path(__file__).resolve().parents[3] / "shared/data/gsm8k/test.jsonl"
NATS = 1e-3
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2}, "qwen2": {"num_key_value_heads": 2}, "gpt_neox": {},
}  # fmt: skip
CHOICE = "output_type: multiple_choice\ndoc_to_target: gold\n"
SHORT = "num_fewshot: 5\nfewshot_config: {sampler: first_n}\n"
ACC = "".join(
    f"  - {{metric: {name}, aggregation: mean, higher_is_better: true}}\n" for name in ("acc", "acc_norm")
)
ASKED = 'doc_to_text: "Question: {{q}}\\nAnswer:"\n'
LETTERS = 'doc_to_text: "{{q}}\\nA. {{long[0]}}\\nB. {{long[1]}}\\nAnswer:"\ndoc_to_choice: [A, B]\n'
MEAN = "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
TASKS = {
    "choice_long": f"{CHOICE}{ASKED}doc_to_choice: long\nnum_fewshot: 0\nmetric_list:\n{ACC}",
    "choice_drawn": f"{CHOICE}{ASKED}doc_to_choice: long\nnum_fewshot: 5\nmetric_list:\n{ACC}",
    "choice_short": f"{CHOICE}{ASKED}doc_to_choice: short\n{SHORT}metric_list:\n{ACC}",
    "choice_letter": f"{CHOICE}{LETTERS}{SHORT}metric_list:\n{ACC}",
    "perplexity": (
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: text\nmetric_list:\n"
        "  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}\n"
        "  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}\n"
    ),
    "greedy": (
        f"output_type: generate_until\n{ASKED}doc_to_target: answer\n{SHORT}"
        "generation_kwargs: {until: ['Question:', ' the', \"\\n\\n\"], do_sample: false, max_gen_toks: 24}\n" + MEAN
    ),
    "number": (
        f"output_type: generate_until\n{ASKED}doc_to_target: answer\nnum_fewshot: 0\n"
        "generation_kwargs: {until: ['Question:'], do_sample: false, max_gen_toks: 16}\n"
        "filter_list:\n  - name: number\n    filter:\n"
        "      - {function: regex, group_select: -1, regex_pattern: '(-?[0-9.]+)'}\n"
        "      - {function: take_first}\n" + MEAN
    ),
}  # fmt: skip


# Folder: its chat template, and whether it is applied
TURNS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}{{ 'assistant:' }}"
CHATS = {
    "left": ("{{ bos_token }}" + TURNS, False),
    "begins": ("{{ bos_token }}" + TURNS, True),
    "bare": (TURNS, True),
    # Its end of turn is nothing that the folder calls an end
    "ends": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<stop>' }}{% endfor %}assistant:",
        True,
    ),
}
CHAT_TASKS = ["choice_short", "perplexity", "greedy"]
STOP = "<stop>"
STOPPED = f"{ASKED}doc_to_target: answer\nnum_fewshot: 0\n{MEAN}" + (
    f"output_type: generate_until\ngeneration_kwargs: {{until: {STOP}, do_sample: false, max_gen_toks: 24}}\n"
)


COMMAND_LINES: dict[Path, Executor] = {}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """tasks/*.yaml, their items, a folder for each model, and a process for lm-eval's command lines."""
    folder = tmp_path_factory.mktemp("equal")
    (folder / "tasks").mkdir()
    items = folder / "items.jsonl"
    questions = lines()
    items.write_text("".join(json.dumps(item(question)) + "\n" for question in questions))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {items}, train: {items}}}}}\n"
    for name, body in (TASKS | {"greedy_stopped": STOPPED}).items():
        text = (
            f"task: {name}\n{data}test_split: test\nfewshot_split: train\n{body}metadata: {{version: 1.0}}\n"
        )
        (folder / f"tasks/{name}.yaml").write_text(text)
    tokenizer = tokenizer_of([question["question"] for question in questions])
    for kind in KINDS:
        model_of(kind, len(tokenizer)).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    penalised(tokenizer, folder / "penalised")
    stopping(tokenizer, folder / "stops")
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    for name, (template, _) in CHATS.items():
        stopping(tokenizer, folder / name)
        beginning(tokenizer, template).save_pretrained(folder / name)
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "CUDA_VISIBLE_DEVICES": ""}
    with ProcessPoolExecutor(1, get_context("spawn"), surround, (env,)) as COMMAND_LINES[folder]:
        yield folder


def lines() -> list[dict[str, str]]:
    """Real questions where they are at hand, else sums."""
    if GSM8K.is_file():
        return [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()[:30]]
    draw = random.Random(2)
    sums = [(draw.randrange(90), draw.randrange(90)) for _ in range(30)]
    return [
        {"question": f"Ann has {a} pens and gets {b} more. How many has she now?", "answer": f"#### {a + b}"}
        for a, b in sums
    ]


def item(line: dict[str, str]) -> dict[str, Any]:
    draw, words = random.Random(line["question"]), line["question"].split()
    return {
        "q": line["question"], "answer": line["answer"].rpartition("#### ")[2], "gold": draw.randrange(2),
        "long": [" ".join(draw.choices(words, k=draw.randrange(2, 10))) for _ in range(3)],
        # No two alike: of equal answers the likelier is decided by rounding
        "short": draw.sample(sorted(set(words)), 3), "text": line["question"] * 9,
    }  # fmt: skip


def tokenizer_of(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<eos>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")


def penalised(tokenizer: Any, folder: Path) -> None:
    """A model whose folder asks for what chat models of the hub ask for; of it, greedy decoding heeds one."""
    model = model_of("llama", len(tokenizer))
    settings = {"repetition_penalty": 1.3, "top_k": 20, "temperature": 0.7, "do_sample": True, "num_beams": 1}
    model.generation_config.update(**settings)
    model.save_pretrained(folder)
    told = json.loads((folder / "generation_config.json").read_text())
    # As some folders of the hub have it: keys of nobody's but theirs
    (folder / "generation_config.json").write_text(json.dumps(told | {"chat_format": "chatml"}))
    tokenizer.save_pretrained(folder)


def stopping(tokenizer: Any, folder: Path) -> None:
    """A model that often writes a special token which ends nothing by itself."""
    import torch

    tokenizer.add_special_tokens({"additional_special_tokens": [STOP]})
    model = model_of("llama", len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(STOP)] *= 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def model_of(kind: str, vocabulary: int) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(5)
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=2048, bos_token_id=None, eos_token_id=0, pad_token_id=1, **KINDS[kind],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # or all answers would be about as likely
    return model


def theirs(bench: Path, kind: str, tasks: list[str], *more: str) -> dict[str, list[dict[str, Any]]]:
    """Samples of the command line."""
    arguments = [
        *("lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "4", "--tasks", ",".join(tasks)),
        *("--model_args", f"pretrained={bench / kind},dtype=float32", "--include_path", str(bench / "tasks")),
        *("--log_samples", "--output_path", str(bench / "out" / kind), *more),
    ]
    COMMAND_LINES[bench].submit(command_line, arguments).result()
    files = {name: next((bench / "out" / kind).rglob(f"samples_{name}_*.jsonl")) for name in tasks}
    return {name: [json.loads(line) for line in path.open()] for name, path in files.items()}


def surround(env: dict[str, str]) -> None:
    """Of the process, before it imports what reads it."""
    os.environ |= env


def command_line(arguments: list[str]) -> None:
    """What `lm_eval` does, but for the index of all its tasks, in a process that has imported it once."""
    from lm_eval import tasks
    from lm_eval.__main__ import cli_evaluate

    tasks.TaskManager = functools.partial(tasks.manager.TaskManager, include_defaults=False)
    sys.argv = arguments
    cli_evaluate()


def ours(
    bench: Path, kind: str, tasks: list[str], monkeypatch: pytest.MonkeyPatch, *, chat: bool = False
) -> dict[str, list[dict[str, Any]]]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from stages.bench.config import Backend, Bench, Precision, Variant
    from stages.bench.evaluation import compile_templates_once
    from stages.bench.model import Scorer
    from stages.common.prompt import Prompt
    from tests.stages.test_bench import NO_CODE

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(bench / "cache"))
    cfg = Bench(1, 1, "equal", tasks, 0, 7, 200, Prompt("none", "", [], 256), 0, chat, [], NO_CODE)
    scorer = Scorer(cfg, Variant(str(bench / kind), "", Precision.fp32, Backend.own, {}))
    assert scorer.likelihood.trees
    compile_templates_once()
    manager = TaskManager(include_path=str(bench / "tasks"), include_defaults=False)
    results = simple_evaluate(
        scorer, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = results["samples"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_is_answered_and_scored_as_by_lm_eval(
    bench: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = list(TASKS)
    same_items(theirs(bench, kind, tasks), ours(bench, kind, tasks, monkeypatch))


@pytest.mark.parametrize("name", CHATS)
def test_a_first_token_stands_where_lm_eval_has_it(
    bench: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not where `hf` finds it already there; a template that is in the folder and not applied changes nothing.

    An end of turn that the folder does not call an end is none to lm-eval: a line says so.
    """
    applied = CHATS[name][1]
    found = ours(bench, name, CHAT_TASKS, monkeypatch, chat=applied)
    assert (f"says that {STOP} ends an answer" in caplog.text) is (name == "ends")
    same_items(theirs(bench, name, CHAT_TASKS, *(["--apply_chat_template"] if applied else [])), found)


def test_a_stop_string_may_be_a_special_token(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch `hf` writes on behind it while another row goes on, so it is asked one by one."""
    tasks = ["greedy_stopped"]
    found = ours(bench, "stops", tasks, monkeypatch)
    lengths = {len(item["filtered_resps"][0]) for item in found["greedy_stopped"]}
    assert min(lengths) < 5 and len(lengths) > 10  # some are stopped early
    same_items(theirs(bench, "stops", tasks, "--batch_size", "1"), found)


def test_the_folders_repetition_penalty_acts_as_at_the_command_line(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch `hf` penalises the padding too, so it is asked one by one."""
    tasks = ["greedy", "number"]
    found, plain = (ours(bench, name, tasks, monkeypatch) for name in ("penalised", "llama"))
    same_items(theirs(bench, "penalised", tasks, "--batch_size", "1"), found)
    texts, without = ([item["resps"] for item in each["number"]] for each in (found, plain))
    assert texts != without


def same_items(expected: dict[str, list[dict[str, Any]]], found: dict[str, list[dict[str, Any]]]) -> None:
    for task, others in expected.items():
        assert len(found[task]) == len(others) == 30
        for mine, other in zip(found[task], others, strict=True):
            assert mine["doc_id"] == other["doc_id"] and mine["prompt_hash"] == other["prompt_hash"]
            same(task, mine["filtered_resps"], other["filtered_resps"])
            for metric in other["metrics"]:
                if isinstance(other[metric], int | float):
                    assert mine[metric] == other[metric], (task, metric, mine["doc_id"])


def same(task: str, mine: list[Any], other: list[Any]) -> None:
    """Equal texts; (nats, greedy) and nats within NATS. The command line writes numbers and flags as texts."""
    for one, two in zip(mine, other, strict=True):
        if task in ("greedy", "greedy_stopped", "number"):
            assert one == two
        elif isinstance(one, tuple):
            assert float(one[0]) == pytest.approx(float(two[0]), abs=NATS)
            assert str(one[1]) == str(two[1])
        else:
            # lm-eval sums a long text in fp32, whose step at 10,000 nats is a thousandth
            whole = float(two[0] if isinstance(two, list) else two)
            assert float(one) == pytest.approx(whole, abs=NATS, rel=2**-22)
