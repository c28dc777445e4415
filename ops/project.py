"""What MLproject's entry points call: `--key value` pairs as MLflow passes them on, composed, then run.

`mlflow run . -P finetune.learning_rate=0.002` arrives here as `run ... --finetune.learning_rate 0.002`.
"""

from __future__ import annotations

import sys

from ops import compose, pipeline

VERBS = ("run", "compose")


def main(arguments: list[str]) -> None:
    """Compose the given values into params.yaml and, for `run`, run the pipeline."""
    verb, values = arguments[0] if arguments else "", overrides(arguments[1:])
    if verb not in VERBS:
        raise ValueError(f"unknown entry point {verb!r}; known: {', '.join(VERBS)}")
    compose.main(values)
    if verb == "run":
        pipeline.main([])


def overrides(arguments: list[str]) -> list[str]:
    """`--a.b 1 --c 2` to Hydra's ["a.b=1", "c=2"]; MLflow writes whole numbers as 17.0, Hydra wants 17."""
    if len(arguments) % 2 or any(not key.startswith("--") for key in arguments[::2]):
        raise ValueError(f"expected pairs of --key value, got {' '.join(arguments)!r}")
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    return [f"{key[2:]}={value.removesuffix('.0') if key == '--seed' else value}" for key, value in pairs]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as problem:
        sys.exit(f"project: {problem}")
