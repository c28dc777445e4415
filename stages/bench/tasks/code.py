"""Code benchmarks (HumanEval, MBPP): lm-eval asks, and what the model wrote is executed in our sandbox, nowhere else.

ops/snapshot_code.py puts these names into a task's YAML in the place of lm-eval's: the modules that those are from
download the metric `code_eval` when they are imported, and it executes programs in this very process.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from stages.bench.programs import Tried, pass_at_k
from stages.bench.sandbox import Outcome, Verdict

Doc = dict[str, Any]
# A statement of its own: an answer that ends with a backslash or a decorator would change what the tests say.
SEAM = "\n\npass\n"
FENCED = re.compile(r"```(?:\w+)?\n?(.*?)\n?```", re.DOTALL)


class CodeTask(ConfigurableTask):  # type: ignore[misc]  # lm-eval carries no types
    """A YAML task whose answers are programs, and whose target is the tests that they have to pass."""

    execute: Callable[[list[str]], list[Verdict]]  # evaluation.py sets it, where the section allows it

    def __init__(self, config: dict[str, Any]) -> None:
        """As lm-eval's, for a YAML that names this class. Raises ValueError for a k above its answers."""
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.counts: list[int] = self._metric_fn_kwargs["pass_at_k"]["k"]
        pass_at_k(self.config.repeats if self.config.filter_list else 1, 0, max(self.counts))

    def apply_filters(self) -> None:
        """Make the answers of all items programs, and execute them all."""
        super().apply_filters()
        found = [
            (instance, name, [given] if isinstance(given, str) else given)
            for instance in self.instances
            for name, given in instance.filtered_resps.items()
        ]
        programs = [self._program(instance.doc, text) for instance, _, texts in found for text in texts]
        verdicts = iter(self.execute(programs))
        for instance, name, texts in found:
            instance.filtered_resps[name] = [Tried(text, next(verdicts)) for text in texts]

    def process_results(self, _: Doc, results: list[list[Tried]]) -> dict[str, float]:
        """pass@k of one item for each k that the YAML asks for."""
        [tried] = results
        passed = sum(answer.verdict.outcome is Outcome.passed for answer in tried)
        return {f"pass_at_{k}": pass_at_k(len(tried), passed, k) for k in self.counts}

    def aggregation(self) -> dict[str, Any]:
        """The mean over items."""
        return {f"pass_at_{k}": mean for k in self.counts}

    def higher_is_better(self) -> dict[str, bool]:
        """Yes."""
        return {f"pass_at_{k}": True for k in self.counts}

    def _program(self, doc: Doc, answer: str) -> str:
        return f"{answer}{SEAM}{self.doc_to_target(doc)}\n"


def completions(responses: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """HumanEval: the function that the prompt begins, with each answer as its body."""
    return [[doc["prompt"] + text for text in texts] for texts, doc in zip(responses, docs, strict=True)]


def fenced_completions(responses: list[list[str]], docs: list[Doc]) -> list[list[str]]:
    """As `completions`, of answers that end with the fence that their prompt has opened."""
    return completions([[text.split("```", maxsplit=1)[0] for text in texts] for texts in responses], docs)


def fenced_blocks(responses: list[list[str]], _: list[Doc]) -> list[list[str]]:
    """MBPP: what stands in the first block of each answer, whose fence the prompt has opened; "" without its end."""
    return [[_first_block(text) for text in texts] for texts in responses]


def _first_block(text: str) -> str:
    # As lm-eval: without a closed block the language is taken for text, and looked again
    found = FENCED.findall(f"```{text}") or FENCED.findall(text.replace("```python", "```"))
    return str(found[0]) if found else ""
