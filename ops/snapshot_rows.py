"""The rows of a snapshot: from a dataset of the Hugging Face hub at one commit, or from files that lie here."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.compose import one_line
from ops.snapshot_config import Recipe, Source
from stages.common.files import read_jsonl

PAPERS = re.compile(r"README\.md|(LICEN[CS]E|COPYING)[\w.-]*")


@dataclass(frozen=True)
class Repository:
    """A dataset repository at a commit."""

    revision: str
    licence: str | None
    files: list[str]


def repository(source: Source, revision: str | None) -> Repository:
    """What the hub has at `revision`, or at the one that lm-eval names, or at the latest; the sha that this is.

    Raises ValueError, one line, where the hub does not answer or has none, for a revision that can move, for rows
    that come from elsewhere than the repository, and for a dataset that is a script: it would run here.
    """
    from huggingface_hub import HfApi

    if revision and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"--revision {revision} can move: give the full 40-digit commit hash")
    if "://" in str(source.kwargs) or source.path in ("json", "csv", "parquet", "text"):
        raise ValueError(
            f"{source.path} with {source.kwargs} is at no commit of a dataset: give its files with --from"
        )
    try:
        info = HfApi().dataset_info(source.path, revision=revision or source.revision)
    except Exception as error:  # httpx's own, the client's, OSError, ValueError
        raise _unavailable(source, error) from error
    files = sorted(sibling.rfilename for sibling in info.siblings or [])
    if (script := f"{source.path.rpartition('/')[2]}.py") in files:
        raise ValueError(
            f"dataset {source.path} is a script ({script} at {info.sha}), which would run here and is refused: "
            "download its Parquet conversion (often the hub's branch refs/convert/parquet) and give that with --from"
        )
    return Repository(str(info.sha), _licence(info.card_data), files)


def from_hub(recipe: Recipe, found: Repository, folder: Path, scratch: Path) -> dict[str, int]:
    """Write the recipe's splits, the dataset's card and licence into `folder`; returns rows by split.

    `scratch` takes Arrow files that nothing needs afterwards: from a cache that lasts, `datasets` would take another
    revision where the network fails. Raises ValueError, one line, for rows that cannot be had.
    """
    from datasets import load_dataset
    from huggingface_hub import hf_hub_download

    source = recipe.source
    try:
        path = f"hf://datasets/{source.path}"  # or a folder of that name, here, would be taken
        data = load_dataset(
            path, source.name, revision=found.revision, cache_dir=str(scratch), **source.kwargs
        )
        for name in filter(PAPERS.fullmatch, found.files):
            held = hf_hub_download(source.path, name, repo_type="dataset", revision=found.revision)
            shutil.copyfile(held, folder / name)
    except Exception as error:  # as above, and whatever its files may hold
        raise _unavailable(source, error) from error
    return {split: _write(recipe, data.get(split, []), split, folder) for split in recipe.splits}


def from_files(recipe: Recipe, given: Path, folder: Path) -> dict[str, int]:
    """As `from_hub`, of the files that `files_of` finds; README.md and LICENSE come along."""
    from pyarrow import ArrowException

    rows = {}
    for split, paths in files_of(recipe, given).items():
        try:
            data = _table(paths)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{paths[0]}: not readable as a table of rows ({one_line(error)})") from error
        rows[split] = _write(recipe, data, split, folder)
    for path in given.iterdir():
        if PAPERS.fullmatch(path.name):
            shutil.copyfile(path, folder / path.name)
    return rows


def files_of(recipe: Recipe, given: Path) -> dict[str, list[Path]]:
    """The files of each split in a folder: `<split>.parquet`, `<split>.jsonl`, or all of `<split>/*.parquet`.

    The last is how the hub's conversions lie. Raises ValueError for a split without one.
    """
    found = {}
    for split in recipe.splits:
        single = [path for kind in (".parquet", ".jsonl") if (path := given / f"{split}{kind}").is_file()]
        found[split] = single[:1] or sorted((given / split).glob("*.parquet"))
        if not found[split]:
            raise ValueError(
                f"{given} has no {split}.parquet, {split}.jsonl or {split}/*.parquet: {recipe.task} reads the splits "
                f"{', '.join(recipe.splits)}"
            )
    return found


def licence_of(given: Path) -> str | None:
    """What the dataset card in a folder says, if there is one. Raises ValueError where its header is no YAML."""
    from huggingface_hub import DatasetCard
    from yaml import YAMLError

    path = given / "README.md"
    try:
        return _licence(DatasetCard.load(path).data) if path.is_file() else None
    except (YAMLError, ValueError) as error:
        raise ValueError(f"{path}: the header is no dataset card's ({one_line(error)})") from error


def _table(paths: list[Path]) -> Any:
    from datasets import Dataset
    from pyarrow import concat_tables
    from pyarrow.parquet import ParquetFile

    if paths[0].suffix == ".parquet":
        return Dataset(concat_tables([ParquetFile(path).read() for path in paths]))
    rows = list(read_jsonl(paths[0]))
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{paths[0]}: a line is no JSON object, so it is no row")
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _write(recipe: Recipe, data: Any, split: str, folder: Path) -> int:
    from datasets import disable_progress_bars

    if not len(data):
        raise ValueError(
            f"{recipe.task}: {recipe.source.path} has no rows in the split {split}, which the task reads"
        )
    disable_progress_bars()  # the client's own, of what it downloads, stay
    data.to_parquet(folder / f"{split}.parquet")
    return len(data)


def _licence(card: Any) -> str | None:
    told = card.license if card else None
    return ", ".join(told) if isinstance(told, list) else told


def _unavailable(source: Source, error: Exception) -> ValueError:
    where = f"dataset {source.path}" + (f", configuration {source.name}," if source.name else "")
    return ValueError(
        f"{where} did not come from the hub ({type(error).__name__}: {one_line(error)[:300]}): check name, revision "
        "and network; a gated dataset wants its terms accepted and HF_TOKEN set (.env.example)"
    )
