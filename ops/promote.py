"""Carry out the gate's decision: `python -m ops.promote [--yes | --found REASON]`. Idempotent after any crash.

Registers the candidate's version in MLflow whatever the verdict (so that a rejected model can be looked at),
and for "promote" moves the champion: registry/items, registry/champion.json, the ledger, the alias, in this
order. The first three are git-tracked: commit them. With register.promote=manual it needs --yes. `--found` makes the
candidate the champion whatever the verdict, for when the old one cannot be made any more (its data or code is gone);
the ledger keeps the reason. Without a reason it acts on no decision that was made against another champion.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ops.package import ALIAS, ensure_version, open_store, read_decision
from stages.common.files import read_json, sha256, write_bytes, write_json, write_text

DECISION, REGISTRY = Path("reports/decision"), Path("registry")


def main(root: Path, *, confirmed: bool, reason: str = "") -> bool:
    """Act on reports/decision; returns whether champion.json changed. Raises ValueError, with nothing changed.

    A `reason` founds the champion anew: the verdict does not matter.
    """
    verdict, manifest = read_decision(DECISION)
    name, state = manifest["registered_model"], read_json(REGISTRY / "champion.json")
    champion = _champion(state, name).get("model")
    live = champion == manifest["model"]
    if not live and not reason and champion != manifest.get("champion"):
        raise ValueError(
            f"the gate decided against {_named(manifest.get('champion'))}, and the champion in {REGISTRY} is "
            f"{_named(champion)}: run `dvc repro`, so that the two are compared, then promote again"
        )
    client = open_store(root)
    version = ensure_version(client, root, manifest, verdict)
    if not live and verdict != "promote" and not reason:
        print(f"{name} version {version} is registered; verdict {verdict}: the champion stays as it is")
        return False
    if not live and manifest["promote"] == "manual" and not (confirmed or reason):
        print(
            f"{name} version {version} passed the gate; register.promote is manual: `python -m ops.promote --yes`"
        )
        return False
    if not live:
        _crown(manifest, state, reason)
    client.set_registered_model_alias(name, ALIAS, version)
    print(f"{name} version {version} is the champion{' already' if live else ': commit registry/'}")
    return not live


def _crown(manifest: dict[str, Any], state: dict[str, Any], reason: str) -> None:
    items = DECISION / "items.json"
    if sha256(items) != manifest["items"]:
        raise ValueError(f"{items} is not the file that {DECISION / 'manifest.json'} names: run `dvc repro`")
    write_bytes(REGISTRY / "items" / f"{manifest['items'][:16]}.json", items.read_bytes())
    entry = {"model": manifest["model"], "items": manifest["items"]}
    name = manifest["registered_model"]
    last = _champion(state, name)
    told = {"founded": reason} if reason else {}
    _append(entry | told | {"registered_model": name, "previous": last.get("model")})
    write_json(REGISTRY / "champion.json", state | {name: {"champion": entry, "previous": last or None}})


def _champion(state: dict[str, Any], name: str) -> dict[str, Any]:
    """What champion.json says is live under a registered model's name; empty before the first promotion."""
    found: dict[str, Any] = state.get(name, {}).get("champion", {})
    return found


def _append(entry: dict[str, Any]) -> None:
    """Add one line to the ledger, unless a crash came right after the last attempt's line."""
    ledger = REGISTRY / "ledger.jsonl"
    text = ledger.read_text(encoding="utf-8") if ledger.exists() else ""
    last = json.loads(text.splitlines()[-1]) if text.strip() else {}
    if {key: last.get(key) for key in entry} == entry:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    stamped = entry | {"at": datetime.now(UTC).isoformat(timespec="seconds"), "baseline_commit": commit}
    write_text(ledger, text + json.dumps(stamped, sort_keys=True) + "\n")


def _named(model: str | None) -> str:
    return f"champion {model[:8]}" if model else "no champion"


def _reason(found: str | None) -> str:
    """The reason given, "" without --found. Raises ValueError where --found stands alone."""
    if found is not None and not found.strip():
        raise ValueError('--found wants a reason, for the ledger: --found "the raw data was cleaned"')
    return found or ""


def _parser() -> argparse.ArgumentParser:
    # no abbreviations: half a word must not move the champion
    parser = argparse.ArgumentParser(
        prog="python -m ops.promote", description="Carry out the gate's decision.", allow_abbrev=False
    )
    parser.add_argument("--yes", action="store_true", help="a person agrees: for register.promote=manual")
    parser.add_argument(
        "--found",
        nargs="?",
        const="",
        metavar="REASON",
        help="whatever the verdict; the ledger keeps the reason",
    )
    return parser


if __name__ == "__main__":
    options = _parser().parse_args()
    try:
        main(Path.cwd(), confirmed=options.yes, reason=_reason(options.found))
    except ValueError as problem:
        sys.exit(f"promote: {problem}")
