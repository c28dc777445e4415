"""stages.bench.reach: which of lm-eval's functions come to code from the network, or to texts as code, when called."""

from __future__ import annotations

import ast

import pytest

from ops.snapshot_config import recipe
from stages.bench.modules import module_file
from stages.bench.reach import forbidden, imports, refused

TASKS = "lm_eval.tasks"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("meqsum.utils.doc_to_text", "meqsum.utils downloads code and runs it (evaluate.load)"),  # on import
        ("noticia.utils.rouge1_agg", "noticia.utils.rouge1_agg downloads code"),
        ("darija_bench.darija_translation.utils.bertbase", "downloads code"),
        ("basqueglue.utils.micro_f1_score", "downloads code and runs it (datasets.load_metric)"),
        (
            "olaph.utils_perplexity.process_results",
            "olaph.utils downloads code",
        ),  # of a module that it imports
        (
            "score.math.utils_math.process_results",
            "executes what a model writes outside of the sandbox (sympy.",
        ),
        ("cruxeval.utils.pass_at_k", "(exec)"),
    ],
)
def test_what_a_function_comes_to(function: str, why: str) -> None:
    assert why in forbidden(f"{TASKS}.{function}")


@pytest.mark.parametrize(
    "function",
    [
        "french_bench.utils.exact",  # the same module has functions that download a metric
        "noticia.utils.doc_to_text",
        "truthfulqa.utils.process_results_gen",
        "minerva_math.utils.process_results",
        "hellaswag.utils.process_docs",
        "nowhere.utils.nothing",
    ],
)
def test_what_merely_stands_beside_it_is_no_reason(function: str) -> None:
    assert forbidden(f"{TASKS}.{function}") == ""


def test_what_an_import_binds() -> None:
    """`import os.path` makes os.system as near as `import os` does."""
    [plain, renamed, relative] = ast.parse("import os.path, re\nimport a.b as c\nfrom ..x import y as z").body
    assert (
        isinstance(plain, ast.Import)
        and isinstance(renamed, ast.Import)
        and isinstance(relative, ast.ImportFrom)
    )
    module = f"{TASKS}.noticia.utils"
    assert imports(module, plain) == {"os": "os", "os.path": "os.path", "re": "re"}
    assert imports(module, renamed) == {"c": "a.b"}
    assert imports(module, relative) == {"z": f"{TASKS}.x.y"}


def test_a_recipe_and_a_snapshot_are_refused_for_it() -> None:
    path = module_file(f"{TASKS}.noticia.utils").with_name("noticia.yaml")
    with pytest.raises(
        ValueError, match=r"noticia: .*utils.rouge1_agg downloads code .*, which is refused"
    ) as no:
        recipe("noticia", path)
    assert "\n" not in str(no.value)
    known = {f"{TASKS}.noticia.utils": "hash"}
    assert "downloads code" in refused(f"{TASKS}.noticia.utils.rouge1_agg", known)
    assert refused(f"{TASKS}.noticia.utils.doc_to_text", known) == ""
    assert "is from no module" in refused(f"{TASKS}.noticia.utils.doc_to_text", {})
    assert refused("stages.bench.snapshot.dataset", {}) == ""
    assert "is from no module" in refused("os.system", {})


def test_every_module_of_lm_evals_tasks_can_be_read() -> None:
    root = module_file(f"{TASKS}.noticia.utils").parents[1]
    for path in sorted(root.rglob("*.py"))[::7]:
        module = ".".join((TASKS, *path.relative_to(root).with_suffix("").parts))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and path.name != "__init__.py":
                assert isinstance(forbidden(f"{module}.{node.name}"), str)
