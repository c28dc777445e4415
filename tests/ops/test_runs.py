"""ops.runs over a real MLflow store: the best settings first, only what differs, failures with their words."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from ops.runs import main
from stages.common.store import connect

REGISTER = "register: {target: {task: t, metric: acc, higher_is_better: true}, guards: []}\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experiments of two stages; of the last one the training was repeated, and one bench failed."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "params.yaml").write_text(REGISTER)
    client = connect(folder)
    experiment = client.create_experiment("Helpdesk-Tiny")

    def run(
        name: str, stage: str, params: dict[str, str], metrics: dict[str, float], status: str, at: int
    ) -> None:
        tags = {
            "lathe.stage": stage.partition("@")[0], "dvc.stage": stage, "params.digest": name, "dvc.experiment": name,
            **({"error": "ValueError: [/x.cc:534] the loss is nan\nat [step] 3"} if status == "FAILED" else {}),
        }  # fmt: skip
        made = client.create_run(experiment, start_time=at * 1000, tags=tags).info.run_id
        for key, value in params.items():
            client.log_param(made, key, value)
        for key, number in metrics.items():
            client.log_metric(made, key, number)
        client.set_terminated(made, status)

    for at, (name, rate, score) in enumerate(
        [("calm-elk", "0.001", 0.9), ("wise-owl", "0.002", 0.95), ("late-cat", "0.004", 0.7)], 1_800_000_000
    ):
        common = {"seed": "17", "threads": "2"}
        run(name, "finetune", common | {"learning_rate": rate}, {"heldout/loss": 1 - score}, "FINISHED", at)
        run(name, "bench@base", common, {"t/acc": 0.1}, "FINISHED", at)
        run(name, "bench@tuned", common | {"limit": "400"}, {"t/acc": score}, "FINISHED", at)
    run(
        "late-cat",
        "finetune",
        {"seed": "17", "learning_rate": "0.004"},
        {"heldout/loss": 0.01},
        "FINISHED",
        at + 9,
    )
    run("lost-dog", "bench@tuned", {}, {}, "FAILED", at + 10)
    run("old-ant", "bench@tuned", {"limit": "1"}, {"t/acc": 1.0}, "FINISHED", 1_000_000_000)
    return folder


def table(root: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    main(["--since", "2027-01-01", "--csv", *arguments], root)
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))


def test_the_best_settings_come_first_and_only_what_differs(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, *rows = table(root, capsys)
    assert header == ["when", "experiment", "t/acc", "finetune.learning_rate", "run"]
    assert [row[1:4] for row in rows] == [
        ["wise-owl", "0.9500", "0.002"], ["calm-elk", "0.9000", "0.001"], ["late-cat", "0.7000", "0.004"]
    ]  # fmt: skip


def test_a_stage_that_came_from_the_cache_hides_no_ones_settings(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a stage logs no run, so the line of old-ant has nothing of finetune."""
    main(["--since", "2001-01-01", "--csv"], root)
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header[3:-1] == ["bench.limit", "finetune.learning_rate"]
    assert [row[1:-1] for row in rows][:2] == [
        ["old-ant", "1.0000", "1", "-"],
        ["wise-owl", "0.9500", "400", "0.002"],
    ]


def test_a_loss_is_the_better_the_lower_and_a_repeated_stage_counts_once(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, *rows = table(root, capsys, "--sort", "heldout/loss", "--stage", "finetune")
    assert [row[1:3] for row in rows] == [
        ["late-cat", "0.0100"],
        ["wise-owl", "0.0500"],
        ["calm-elk", "0.1000"],
    ]


def test_what_failed_says_why(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, *rows = table(root, capsys, "--failed")
    assert header[-1] == "error" and len(rows) == 1
    assert rows[0][1:] == [
        "lost-dog",
        "bench@tuned",
        "FAILED",
        "ValueError: [/x.cc:534] the loss is nan at [step] 3",
    ]


def test_the_table_is_for_a_person(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--since", "2001-01-01"], root)
    shown = capsys.readouterr().out
    assert shown.index("old-ant") < shown.index("wise-owl") < shown.index("late-cat")


def test_the_words_of_an_error_are_no_markup(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--since", "2027-01-01", "--failed"], root)
    words = capsys.readouterr().out.replace("│", " ").split()
    assert {"[/x.cc:534]", "[step]"} <= set(words)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "soon"], "--since 'soon': give 12h, 7d, 2w or a date"),
        (
            ["--since", "2027-01-01", "--sort", "t/none"],
            "stage bench@tuned has metric 't/none'; it has: t/acc",
        ),
        (["--since", "2027-01-01", "--stage", "judge"], "stage judge has metric 't/acc'; it has: no runs"),
        (["--since", "2040-01-01", "--failed"], "no failed run since 2040-01-01"),
    ],
)
def test_bad_input_is_one_line(root: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        main(arguments, root)
    assert said in str(caught.value) and "\n" not in str(caught.value)
