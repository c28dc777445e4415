"""A task's documents, made once: what its `process_docs` draws by chance is drawn from the section's seed, for good.

lm-eval calls `process_docs` again for the examples, the requests and the scores. It counts on `datasets` to find what
the first call made in a cache on disk; rows in memory have none, and a task that shuffles the answers of a question
(GPQA) would be scored against another order than the one that was asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from stages.bench.snapshot import ROW


@contextmanager
def processed_once(seed: int) -> Iterator[None]:
    """Tasks that lm-eval loads inside keep what `process_docs` makes of each split.

    Each call begins at `seed`, so that its draws depend on no other task; the command line with that seed and one task
    begins there too.
    """
    from lm_eval.api.task import ConfigurableTask

    download = ConfigurableTask.download

    @wraps(download)
    def and_keep(task: Any, *given: Any, **named: Any) -> None:
        download(task, *given, **named)
        made: dict[tuple[int, int], tuple[Any, Any]] = {}  # examples and items may be of one split
        for config in (task.config, task.fewshot_cfg):
            if config.process_docs is not None:
                config.process_docs = _kept(config.process_docs, seed, made)

    ConfigurableTask.download = and_keep
    try:
        yield
    finally:
        ConfigurableTask.download = download


def draw_among_rows(task: Any) -> None:
    """Have a task's examples drawn from its rows as lm-eval knows them, without ROW.

    lm-eval leaves out every example that equals the item. With a number in each, a row that stands there twice would
    be an example of itself.
    """
    if (sampler := getattr(task, "sampler", None)) is None:
        return
    sample = sampler.sample

    @wraps(sample)
    def without_numbers(n: int, eval_doc: Any = None, **named: Any) -> Any:
        return sample(n, eval_doc=eval_doc and _plain(eval_doc), **named)

    sampler.df = [_plain(doc) for doc in sampler.df]
    sampler.sample = without_numbers


def _plain(doc: Any) -> Any:
    return {key: value for key, value in doc.items() if key != ROW} if isinstance(doc, dict) else doc


def _kept(
    process: Callable[[Any], Any], seed: int, made: dict[tuple[int, int], tuple[Any, Any]]
) -> Callable[[Any], Any]:
    import numpy as np

    @wraps(process)
    def once(rows: Any) -> Any:
        key = id(process), id(rows)
        if key not in made:
            random.seed(seed)
            np.random.seed(seed)
            made[key] = rows, process(rows)  # the rows too: their id is theirs while they are there
        return made[key][1]

    return once
