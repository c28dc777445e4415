"""How lm-eval asks our own tasks: rows of a JSON-lines file through the model's chat template.

The YAML files beside this one name these classes and functions. lm-eval's own prompt builder knows one user
turn a row; a conversation, or a row with a system turn of its own, would be asked differently from how the
model was trained. So the turns come from `with_prompt`, as in the prepare stage, and only the rendering is
lm-eval's: the string sent is `apply_chat_template(with_prompt(...), tools, add_generation_prompt=True)`, no more.
Rows that are no conversations (`fields`) are asked by the YAML's own description and doc_to_text.
"""

from __future__ import annotations

import copy
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.metrics import mean
from lm_eval.api.registry import get_aggregation
from lm_eval.api.task import ConfigurableTask
from pyarrow import ArrowInvalid, ArrowTypeError

from stages.bench.corpus import ITEM
from stages.bench.scores import chosen
from stages.bench.tasks import scorers
from stages.bench.tasks.scoring import triage_fields
from stages.bench.turns import ChatTemplate
from stages.common.files import read_jsonl
from stages.common.prompt import Example, Prompt, with_prompt

log = logging.getLogger("lathe")
Doc = dict[str, Any]
PREPARED, FOLDERS = Path("data/prepared/test.jsonl"), Path("data/benchmarks")
BESIDES = ("tool_calls", "reasoning_content")  # what an answer may hold besides its text
IDS = ("id", "task_id", "question_id")  # as prepare names an item (stages/prepare/overlap/tested.py)
# What lm-eval's own prompt builder knows and ours does not; of conversations, also what their turns say themselves
IGNORED = {"num_fewshot", "fewshot_split", "fewshot_config", "fewshot_delimiter", "gen_prefix"}
TURNS = {"description"}
DEFAULTS: Doc = {
    "test_split": "test",
    "num_fewshot": 0,
    "target_delimiter": "",  # an answer begins where the template ends
}
GREEDY: Doc = {
    "do_sample": False,
    "temperature": 0.0,
    "until": [],
}  # without `until`, lm-eval ends at an empty line


class ChatTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval carries no types
    """A YAML task whose context is a whole conversation."""

    def __init__(self, config: Doc) -> None:
        """As lm-eval's, for a YAML that names this class.

        Raises ValueError for an unknown scorer, and for a key that would have no effect on what is asked.
        """
        _refuse_ignored(config)
        config = DEFAULTS | {key: value for key, value in config.items() if key != "class"}
        name, kind = config["task"], config["output_type"]
        if kind == "generate_until":
            config["generation_kwargs"] = copy.deepcopy(GREEDY | config.get("generation_kwargs", {}))
        theirs, self.scorers = config.get("metric_list"), list[Doc]()
        if not config.get("process_results"):
            theirs, self.scorers = scorers.entries(name, kind, config.get("metric_list"))
        self.fits = scorers.schema(name, self.scorers)
        super().__init__(config=config | {"metric_list": theirs})
        for entry in self.scorers:
            how = entry["aggregation"]
            self._aggregation_list[entry["metric"]] = get_aggregation(how) if isinstance(how, str) else how
            self._aggregation_list[entry["metric"] + ITEM] = mean
            self._higher_is_better[entry["metric"]] = entry["higher_is_better"]
        if self.scorers and self.multiple_target:
            raise ValueError(
                f"{name}: doc_to_target is a list: of the ready scorers only exact_match takes one"
            )

    template: ChatTemplate

    def speak(self, template: ChatTemplate, end: str) -> None:
        """Ask through the model's own template, whose answers end with `end`, and write by it what only it can write:

        the right answers that call tools or, where their likelihood counts, bring their reasoning; what is generated
        is not compared with thoughts. Raises ValueError where it cannot.
        """
        self.template = template
        docs = self.dataset[self.config.test_split]
        if "spoken" in docs.column_names and any(docs["spoken"]):
            self.dataset[self.config.test_split] = Dataset.from_list([self._spoken(doc, end) for doc in docs])

    def fewshot_context(self, doc: Doc, *_: Any, **__: Any) -> str:
        """The prompt of one item as a string, through the chat template whether lm-eval's tasks are or not."""
        if doc["turns"]:
            return self.template.asked(json.loads(doc["turns"]), json.loads(doc["tools"]))
        system = self.resolve_field(doc, self.config.description)
        turns = [{"role": "system", "content": system}] if system else []
        return self.template.asked([*turns, {"role": "user", "content": str(self.doc_to_text(doc))}])

    def _spoken(self, doc: Doc, end: str) -> Doc:
        if not doc["spoken"]:
            return doc
        turns, last, tools = (json.loads(doc[name]) for name in ("turns", "spoken", "tools"))
        if self.OUTPUT_TYPE == "generate_until":
            if not last.get("tool_calls"):
                return doc
            last.pop("reasoning_content", None)
        return doc | {"target": self.template.answered(turns, last, tools, end)}

    def process_results(self, doc: Doc, results: list[Any]) -> Doc:
        """lm-eval's scores of one item, or the YAML's own function's, and those of the ready scorers."""
        found: Doc = super().process_results(doc, results)
        if not self.scorers:
            return found
        if self.OUTPUT_TYPE == "multiple_choice":
            choices, gold = self.doc_to_choice(doc), self.doc_to_target(doc)
            nats = [float(each) for each, _ in results]
            likeliest = choices[nats.index(max(nats))]
            if isinstance(gold, int):
                gold = chosen(choices, gold, f"item {doc['id']} of {self.task_name}")
            return found | scorers.label(gold, likeliest)
        target = str(self.doc_to_target(doc))
        if self.OUTPUT_TYPE == "generate_until":
            return found | scorers.generated(self.scorers, target, results[0], self.fits)
        first = results[0][0] if isinstance(results[0], tuple) else results[0]
        return found | scorers.likely(self.scorers, target, first)


def _refuse_ignored(config: Doc) -> None:
    said = getattr(config.get("custom_dataset"), "__name__", "") in (rows.__name__, intent_rows.__name__)
    ignored = IGNORED | (TURNS if said else set())
    if lost := sorted(key for key in ignored if config.get(key)):
        raise ValueError(
            f"{config['task']}: {lost[0]} has no effect on a task that asks through the chat template: write examples "
            "into prompt.examples (of conversations) or into description (of any fields), and leave the key out"
        )


def rows(path: str, prompt: dict[str, Any], fewshot: int | None, **_: Any) -> dict[str, Dataset]:
    """The split `test`: one item a row, asked up to its last assistant turn, which is the target.

    Raises ValueError on a missing or empty file and on a row that does not end with an assistant's answer.
    """
    return {"test": Dataset.from_list(list(_docs(Path(path), _prompt(prompt, fewshot))))}


def fields(path: str, **_: Any) -> dict[str, Dataset]:
    """The split `test`: rows that are any JSON objects, for a YAML whose doc_to_text and doc_to_target name fields.

    Raises ValueError on a missing or empty file, a row that is no object, and fields that do not make a table.
    """
    docs = []
    for number, row in enumerate(_read(Path(path))):
        if not isinstance(row, dict) or {"turns", "meta"} & row.keys():
            raise ValueError(
                f"{path}:{number + 1}: not a JSON object without the fields turns and meta, bench's own"
            )
        own = next((row[key] for key in IDS if isinstance(row.get(key), str | int)), f"{number:07d}")
        docs.append(row | {"id": str(own), "turns": "", "meta": "{}"})
    _refuse_twice(path, [doc["id"] for doc in docs])
    names = dict.fromkeys(name for doc in docs for name in doc)
    try:
        return {"test": Dataset.from_dict({name: [doc.get(name) for doc in docs] for name in names})}
    except (ArrowInvalid, ArrowTypeError) as error:
        raise ValueError(
            f"{path}: a field has values of several kinds ({' '.join(str(error).split())})"
        ) from error


def intent_rows(path: str, prompt: dict[str, Any], fewshot: int | None, **_: Any) -> dict[str, Dataset]:
    """`rows` with `choices`, how an answer may begin (one for each intent of the file), and the right one."""
    docs = list(_docs(Path(path), _prompt(prompt, fewshot)))
    gold = [triage_fields(doc["target"], doc["id"])["intent"] for doc in docs]
    intents = sorted(set(gold))
    choices = [f'{{"intent": {json.dumps(intent)},' for intent in intents]
    for doc, intent in zip(docs, gold, strict=True):
        doc |= {"choices": choices, "answer": intents.index(intent)}
    return {"test": Dataset.from_list(docs)}


def _prompt(values: dict[str, Any], fewshot: int | None) -> Prompt:
    examples = [Example(**example) for example in values["examples"]]
    if fewshot and fewshot > len(examples):
        log.warning(
            "bench.fewshot=%d, and prompt.examples has %d: our own tasks are asked with those",
            fewshot,
            len(examples),
        )
    return Prompt(**{**values, "examples": examples[: fewshot or 0]})


def _docs(path: Path, prompt: Prompt) -> Iterator[Doc]:
    found = _read(path)
    _refuse_twice(str(path), [row["id"] for row in found])
    for row in found:
        *turns, last = row["messages"] or [{"role": "none", "content": ""}]
        more = any(last.get(key) for key in BESIDES)
        if last["role"] != "assistant" or not (last["content"] or last.get("tool_calls")):
            raise ValueError(f"{path}: row {row['id']} ends with {last['role']!r}, not with an answer")
        yield {
            "id": row["id"],
            "meta": json.dumps(row["meta"]),
            "turns": json.dumps(with_prompt(prompt, turns, examples=True)),
            "tools": json.dumps(row.get("tools", [])),
            "spoken": json.dumps(last) if more else "",  # ChatTask.speak makes the target of it
            "question": turns[-1]["content"] if turns else "",
            "target": last["content"],
        }


def _read(path: Path) -> list[Any]:
    """A file's rows. Raises ValueError where it is missing or empty, or lies where DVC would not see a change."""
    if path != PREPARED and (FOLDERS not in path.parents or path.parent == FOLDERS or ".." in path.parts):
        raise ValueError(
            f"{path}: a task's data lies in {FOLDERS}/<task>/, which bench depends on and prepare looks at"
        )
    if not path.is_file():
        remedy = "run `dvc repro prepare`" if path == PREPARED else "put them there, or `dvc pull`"
        raise ValueError(f"no test rows at {path}: {remedy}")
    if path != PREPARED and len(list(_tables(FOLDERS / path.parts[len(FOLDERS.parts)]))) > 1:
        raise ValueError(f"{path} is not alone: one data file a folder, or prepare names its items otherwise")
    found = list(read_jsonl(path))
    if not found:
        remedy = ": look at data.test and at data/prepared/rejects.jsonl" if path == PREPARED else ""
        raise ValueError(f"{path} holds no rows{remedy}")
    return found


def _tables(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix in (".jsonl", ".parquet"))


def _refuse_twice(path: str, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path}: id {twice[0]!r} stands there twice: items are told apart by it")
