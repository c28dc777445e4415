"""Which files a source's globs name, and of which kind each is."""

from __future__ import annotations

import glob
import stat
from dataclasses import dataclass
from pathlib import Path

from stages.prepare.reading.streams import COMPRESSIONS

LINES, JSON, CSV, TSV, PARQUET = "jsonl", "json", "csv", "tsv", "parquet"
SUFFIXES = {".jsonl": LINES, ".ndjson": LINES, ".json": JSON, ".csv": CSV, ".tsv": TSV, ".parquet": PARQUET}


@dataclass(frozen=True)
class Kind:
    """What a file holds, and how it is compressed: "", ".gz" or ".zst"."""

    container: str
    compression: str


def expand(where: str, patterns: list[str], root: Path) -> list[str]:
    """The files that the globs match, sorted, relative to `root`; hidden ones only where a glob says so.

    Raises ValueError, which begins with `where`, for a glob that leaves `root` or matches nothing, and for what is
    no file. A link to a file is one: DVC links.
    """
    found: set[str] = set()
    for pattern in patterns:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ValueError(f"{where}: {pattern!r} leaves data.path ({root}): name files below it")
        matches = glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207 - Path.glob takes hidden files
        if not matches:
            raise ValueError(
                f"{where}: {pattern!r} matches nothing in {root}: put the rows there, or correct it"
            )
        found.update(Path(match).as_posix() for match in matches)
    for name in sorted(found):
        _refuse_other(where, root / name)
    return sorted(found)


def kind_of(name: str) -> Kind:
    """The kind that a file's suffixes say. Raises ValueError for an unknown one."""
    path = Path(name.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    suffix = (path.with_suffix("") if compression else path).suffix
    if suffix not in SUFFIXES:
        known = " ".join(SUFFIXES)
        raise ValueError(f"{name} is of an unknown kind: {known} are read, each also as .gz or .zst")
    if SUFFIXES[suffix] == PARQUET and compression:
        raise ValueError(f"{name}: Parquet compresses its columns itself, unpack the {compression} around it")
    return Kind(SUFFIXES[suffix], compression)


def _refuse_other(where: str, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ValueError(
            f"{where}: {path} cannot be read ({error.strerror}): dvc pull or dvc checkout?"
        ) from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{where}: {path} is a folder: name its files, as in rows/*.jsonl")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{where}: {path} is no regular file but a pipe, socket or device: name a file")
    if not str(path).isprintable():
        raise ValueError(f"{where}: {str(path)!r} has a name that cannot be printed: rename it")
