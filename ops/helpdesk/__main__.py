"""Writes the generated corpus to data/raw/helpdesk: `python -m ops.helpdesk`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ops.helpdesk.corpus import corpus
from stages.common.files import write_bytes

OUT = Path("data/raw/helpdesk")
JUDGE_PROMPT = Path("conf/prompt/judge/pairwise.yaml")


def main() -> None:
    """Write every file of the corpus, each replaced as a whole."""
    judge_prompt: dict[str, Any] = yaml.safe_load(JUDGE_PROMPT.read_text(encoding="utf-8"))
    for name, content in corpus(judge_prompt).items():
        write_bytes(OUT / name, content)
        print(f"{OUT / name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
