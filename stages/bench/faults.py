"""What lm-eval cannot do with a task, in one line that names the task and its file; an error of ours stays as it is."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from stages.bench.modules import module_file

P = ParamSpec("P")
R = TypeVar("R")
OURS = Path(__file__).parents[1]
# What a wrong key, template, function or item of a task comes to in lm-eval; not what memory, files or a device do.
WRONG = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, SyntaxError, TypeError, ValueError,
)  # fmt: skip
LENGTH = 300


@contextmanager
def blamed(task: str, file: Path) -> Iterator[None]:
    """Raise ValueError, one line, for what goes wrong inside on account of the task that `file` describes.

    An error that our own code has raised, or met in a library, passes: a clear line of ours, or a bug to be seen.
    """
    from jinja2.exceptions import TemplateError

    try:
        yield
    except (*WRONG, TemplateError) as error:
        if not _in_lm_eval(error):
            raise
        told = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        text = " ".join(f"{type(told).__name__}: {told}".split())[:LENGTH]
        what, remedy = "lm-eval fails on it", "look at what it says, and at its items"
        if isinstance(error, TemplateError):
            what = "a template does not fit the task's items"
        elif isinstance(error, ImportError):
            what, remedy = "what it imports is not there", "install it"
        raise ValueError(
            f"{task} of bench.tasks ({file}): {what} ({text}): {remedy}, or leave the task out"
        ) from error


def guarded(call: Callable[P, R], task: str, file: Path) -> Callable[P, R]:
    """`call` inside `blamed`."""

    @wraps(call)
    def guard(*given: P.args, **named: P.kwargs) -> R:
        with blamed(task, file):
            return call(*given, **named)

    return guard


def _in_lm_eval(error: BaseException) -> bool:
    """Whether lm-eval, or a task's module of its, called what raised: the innermost code that is its or ours is its."""
    theirs = module_file("lm_eval").parent
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if path == Path(__file__):
            continue
        if path.is_relative_to(theirs) or path.is_relative_to(OURS):
            return path.is_relative_to(theirs)
    return False
