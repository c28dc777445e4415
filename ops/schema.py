"""The schema of params.yaml: what conf/ may say, by type, and nothing unknown.

hydra_plugins/lathe.py imports this when Hydra looks for plugins; importing it registers the schema and the three
resolvers below. No dataclass here or in stages/*/config.py has a default: the value stands in conf/ alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ops.digest import conf_files, values_digest
from stages.base.config import Base, Model
from stages.bench.config import Bench, Variant
from stages.common.prompt import Prompt
from stages.common.tracking import Tracking
from stages.drift.config import Drift
from stages.finetune.config import Finetune, MethodConfig, World
from stages.judge.config import Judge
from stages.prepare.config import Data, Prepare
from stages.register.config import Register

CONF = Path(__file__).resolve().parent.parent / "conf"
TEST_ROWS = "data/prepared/test.jsonl"


@dataclass
class Digest:
    """Which conf/ files made params.yaml, and a hash of the values: what ops/guard.py checks."""

    files: dict[str, str]
    values: str


@dataclass
class Config:
    """params.yaml: what a person chooses first, then one section per stage in pipeline order."""

    experiment: str
    seed: int
    threads: int
    model: Model
    data: Data
    prompt: Prompt
    method: MethodConfig
    world: World
    tracking: Tracking
    base: Base
    prepare: Prepare
    finetune: Finetune
    bench: Bench
    judge: Judge
    drift: Drift
    register: Register
    variants: dict[str, Variant]
    digest: Digest


def foreign_tasks(tasks: list[str]) -> list[str]:
    """Tasks that ask items of their own, and not the rows of the dataset's test split."""
    own = CONF.parent / "stages/bench/tasks"
    return [
        task
        for task in tasks
        if not (path := own / f"{task}.yaml").is_file() or TEST_ROWS not in path.read_text(encoding="utf-8")
    ]


def _plain(root: DictConfig) -> dict[str, Any]:
    """The composed values without the digest itself, which would refer to itself."""
    return {
        str(key): OmegaConf.to_container(root[key], resolve=True, enum_to_str=True, throw_on_missing=True)
        if OmegaConf.is_config(root[key])
        else root[key]
        for key in root
        if key != "digest"
    }


OmegaConf.register_new_resolver(
    "conf_files", lambda *, _root_: conf_files(CONF, _plain(_root_)), replace=True
)
OmegaConf.register_new_resolver("foreign_tasks", lambda tasks: foreign_tasks(list(tasks)), replace=True)
OmegaConf.register_new_resolver("conf_values", lambda *, _root_: values_digest(_plain(_root_)), replace=True)
ConfigStore.instance().store(name="schema", node=Config)
