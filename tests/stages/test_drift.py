"""The drift stage: its statistics against references, its error rates, its page, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.common.statistics import benjamini_hochberg, holm
from stages.drift.__main__ import REPORT, main
from stages.drift.calibration import calibrate
from stages.drift.config import Drift
from stages.drift.descriptors import categorical, describe, moves, unseen_shares
from stages.drift.embedding import embed
from stages.drift.energy import distances, energy, interval, permutation_test
from stages.drift.logs import Row, limited, read_window
from stages.drift.page import not_evaluated
from stages.drift.performance import accuracies, worse
from stages.drift.text import parsed
from stages.drift.verdict import conversations, decide, first_rows

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = [*"abcdefghijklmnopqrstuvwxyz", "order", "box", "screen", "cable", "new", "please", "thanks"]


def settings(**changes: Any) -> Drift:
    """A small, fast section; every key is named, as in conf/drift/default.yaml."""
    base = Drift(
        seed=17,
        threads=2,
        note="Generated for a test.",
        name="test",
        model="model",
        logs="logs",
        reference="reference",
        alpha=0.05,
        permutations=199,
        resamples=50,
        max_rows=2000,
        min_rows=50,
        batch_size=32,
        null_draws=8,
        shift=0.2,
    )
    return replace(base, **changes)


def log_rows(
    rng: np.random.Generator, count: int, *, words: int = 8, right: float = 0.9
) -> list[dict[str, Any]]:
    """Log rows: Poisson(`words`) words, one predicted field that feedback confirms at rate `right`."""
    rows = []
    for number in range(count):
        text = " ".join(rng.choice(VOCABULARY, 2 + rng.poisson(words)))
        intent = str(rng.choice(["refund", "repair", "other"]))
        truth = intent if rng.random() < right else "wrong"
        output = json.dumps({"intent": intent}) + "\nWe will see to it."
        row = {"id": str(number), "input": text, "output": output, "feedback": {"intent": truth}}
        rows.append(row if number % 2 else row | {"feedback": None})
    return rows


def parsed_rows(rows: list[dict[str, Any]]) -> list[Row]:
    return [Row(row["input"], row["output"], row["feedback"], row["id"]) for row in rows]


def write_log(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def sample_logs(folder: Path) -> None:
    rng = np.random.default_rng(5)
    write_log(folder, "reference", log_rows(rng, 160))
    write_log(folder, "quiet", log_rows(rng, 120))
    write_log(folder, "moved", log_rows(rng, 120, words=16, right=0.4))
    write_log(folder, "few", log_rows(rng, 10))


# the energy distance


def test_energy_equals_the_definition_and_scipy() -> None:
    from scipy.spatial.distance import cdist
    from scipy.stats import energy_distance

    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (30, 1)), rng.normal(0.5, 2, (40, 1))
    both = np.vstack([x, y])
    side = (np.arange(70) < 30).astype(float)[:, None]
    found = energy(cdist(both, both), side, 1 - side)[0]
    within = [cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    between = 2 * cdist(x, y).mean()
    assert found == pytest.approx((between - sum(within)) / between)
    # scipy's squared distance is the biased form, which counts a row with itself as a pair
    biased = between - within[0] * 29 / 30 - within[1] * 39 / 40
    assert energy_distance(x[:, 0], y[:, 0]) ** 2 == pytest.approx(biased)


def test_weights_count_copies_and_drop_pairs_of_copies() -> None:
    from scipy.spatial.distance import cdist

    points = np.random.default_rng(1).normal(size=(6, 2))
    left, right = np.array([2.0, 1, 0, 0, 0, 0]), np.array([0.0, 0, 0, 1, 1, 1])
    d = cdist(points, points)
    between = 2 * (2 * d[0, 3:].sum() + d[1, 3:].sum()) / 9
    within = d[0, 1] + d[3:, 3:].sum() / 6  # of three draws, the only pairs of different points are (0, 1)
    assert energy(d, left[:, None], right[:, None])[0] == pytest.approx((between - within) / between)


def test_distances_do_not_depend_on_a_dimension_s_unit() -> None:
    vectors = np.random.default_rng(2).normal(size=(20, 3))
    scaled = distances(vectors * [1, 1000, 0.001])
    np.testing.assert_allclose(scaled, distances(vectors), atol=1e-6)
    assert (np.diag(scaled) == 0).all()
    assert np.isfinite(distances(np.ones((5, 2)))).all()


def alarm_share(draw: Any, trials: int) -> float:
    """Share of trials whose permutation p-value is at most 0.05; `draw(rng)` gives 100 + 100 vectors."""
    p = [
        permutation_test(distances(draw(np.random.default_rng(trial))), np.arange(200), 100, 199, trial)[1]
        for trial in range(trials)
    ]
    return float(np.mean(np.array(p) <= 0.05))


def test_false_alarms_on_noise_are_at_the_stated_rate() -> None:
    share = alarm_share(lambda rng: rng.normal(size=(200, 8)), 100)
    assert 0.01 <= share <= 0.115  # three standard errors above 0.05, two below


def test_a_shift_of_the_mean_and_a_change_of_scale_are_found() -> None:
    def moved(rng: np.random.Generator) -> Any:
        return np.vstack([rng.normal(size=(100, 8)), rng.normal(0.35, 1, (100, 8))])

    def wider(rng: np.random.Generator) -> Any:
        return np.vstack([rng.normal(size=(100, 8)), rng.normal(0, 1.5, (100, 8))])

    assert alarm_share(moved, 20) >= 0.9
    assert alarm_share(wider, 20) >= 0.9


def test_conversations_change_sides_whole() -> None:
    """Twenty copies of a row are one observation: 10 against 10 conversations of equal law do not alarm."""
    alarms = 0
    for trial in range(20):
        rng = np.random.default_rng(trial)
        vectors = np.repeat(rng.normal(size=(20, 4)), 20, axis=0) + rng.normal(0, 0.01, (400, 4))
        units = np.repeat(np.arange(20), 20)
        alarms += permutation_test(distances(vectors), units, 200, 199, trial)[1] <= 0.05
    assert alarms <= 3
    # taken for 400 rows of their own, the last sample alarms
    assert permutation_test(distances(vectors), np.arange(400), 200, 99, 1)[1] == 0.01


def test_interval_of_the_effect_holds_it_and_excludes_zero_on_a_shift() -> None:
    rng = np.random.default_rng(3)
    vectors = np.vstack([rng.normal(size=(100, 4)), rng.normal(1, 1, (80, 4))])
    effect = interval(distances(vectors), np.arange(180), 100, 200, 1)
    assert 0 < effect["lo"] < effect["value"] < effect["hi"]
    assert effect["n"] == 180
    assert effect["value"] == pytest.approx(
        permutation_test(distances(vectors), np.arange(180), 100, 9, 1)[0]
    )


# descriptors and performance


def test_descriptors_are_adjusted_by_benjamini_hochberg_and_name_what_moved() -> None:
    rng = np.random.default_rng(7)
    reference, window = parsed_rows(log_rows(rng, 200)), parsed_rows(log_rows(rng, 150, words=14))
    found = moves(describe(reference, window))
    assert [m.adjusted for m in found] == pytest.approx(benjamini_hochberg([m.p for m in found]))
    assert {found[0].name, found[1].name} == {"words", "characters"}
    assert {m.name for m in found} >= {"predicted intent", "word length"}
    assert "digits" not in {m.name for m in found}  # constant on both sides: no test


def test_unseen_words_have_one_law_on_both_sides_until_new_ones_come() -> None:
    rng = np.random.default_rng(8)
    rows = [
        Row(" ".join(f"w{chr(97 + i)}" for i in rng.integers(0, 26, 5)), "", None, str(n)) for n in range(400)
    ]
    left, right = unseen_shares(rows[:200], rows[200:])
    assert abs(left.mean() - right.mean()) < 0.02
    new = [Row("zzz yyy", "", None, "new")]
    assert unseen_shares(rows, new)[1][0] == 1.0


def test_categories_are_tested_with_rare_ones_together() -> None:
    from scipy.stats import chi2_contingency

    reference, window = ["a"] * 60 + ["b"] * 40, ["a"] * 30 + ["b"] * 70
    before, after, effect, p = categorical([*reference, "c"], [*window, "d"])
    table = [[61, 40], [31, 70]]  # c and d are too rare to stand alone, a is the rarest that does
    assert p == pytest.approx(chi2_contingency(table, correction=False).pvalue)
    assert effect == pytest.approx(np.sqrt(chi2_contingency(table, correction=False).statistic / 202))
    assert (before[0], after[0]) in {("a", "a"), ("b", "b")}
    assert categorical(["a"] * 50, ["a"] * 50)[3] == 1.0
    assert categorical([str(i) for i in range(50)], [str(i) for i in range(50)])[3] == 1.0


def test_accuracy_by_feedback_is_fisher_s_test_with_holm() -> None:
    from scipy.stats import fisher_exact

    reference, window = [True] * 90 + [False] * 10, [True] * 30 + [False] * 20
    expected = fisher_exact([[30, 20], [90, 10]], alternative="less").pvalue
    assert worse(reference, window) == pytest.approx(expected)

    def rows(right: list[bool]) -> list[Row]:
        output = '{"intent": "a", "mood": "b"}\nok'
        return [
            Row("", output, {"intent": "a" if r else "x", "mood": "b", "liked": r}, str(i))
            for i, r in enumerate(right)
        ]

    fields = {field.name: field for field in accuracies(rows(reference), rows(window))}
    assert [f.adjusted for f in fields.values()] == pytest.approx(holm([f.p for f in fields.values()]))
    assert fields["intent"].window["value"] == 0.6
    assert fields["liked"].window["value"] == 0.6  # no output has such a field: a rating of the answer
    assert fields["mood"].p == 1.0
    assert accuracies(rows(reference), [Row("", "", None, "1")]) == []


def test_an_answer_is_taken_apart_whatever_it_is() -> None:
    assert parsed('{"a": 1}\nhello\nyou') == ({"a": 1}, "hello\nyou")
    assert parsed('{\n"a": 1\n}') == ({"a": 1}, "")
    for text in ("just text\nand more", "[1, 2]", "", "3", "{broken\n"):
        assert parsed(text) == ({}, text)


# the verdict


def test_verdict_is_holm_over_its_parts_and_takes_one_row_of_a_conversation() -> None:
    rng = np.random.default_rng(9)
    reference, window = parsed_rows(log_rows(rng, 120)), parsed_rows(log_rows(rng, 100))
    matrix = distances(rng.normal(size=(220, 4)))
    verdict = decide(reference, window, matrix, settings(), 1)
    assert list(verdict.p_values) == ["data", "descriptors", "performance"]
    assert list(verdict.adjusted.values()) == pytest.approx(holm(list(verdict.p_values.values())))
    assert not verdict.alarm
    silent = [replace(row, feedback=None) for row in window]
    assert list(decide(reference, silent, matrix, settings(), 1).p_values) == ["data", "descriptors"]
    rows = [Row("a", "", None, "x"), Row("b", "", None, "y"), Row("c", "", None, "x")]
    assert [row.input for row in first_rows(rows)] == ["a", "b"]
    assert conversations(rows, 2).tolist() == [0, 1, 2]


def test_calibration_measures_the_verdict_on_the_reference() -> None:
    rng = np.random.default_rng(10)
    rows = parsed_rows(log_rows(rng, 200))
    vectors = np.array([[len(row.words), *rng.normal(size=2)] for row in rows])
    found = calibrate(rows, distances(vectors), 60, settings(null_draws=30, shift=0.5))
    assert (found.left, found.right) == (140, 60)
    assert found.false_alarms["value"] <= 0.2
    assert found.power is not None and found.power["value"] >= 0.9
    same = [replace(row, input="one length") for row in rows]
    assert calibrate(same, distances(vectors), 500, settings(null_draws=2)).power is None


# the stage


def test_the_stage_alarms_where_drift_was_put_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    sample_logs(Path("logs"))
    found = main(settings(model=str(tiny_model)))
    assert {key: found[key]["value"] for key in found if key.endswith("/alarm")} == {
        "moved/alarm": 1,
        "quiet/alarm": 0,
    }
    assert found["drift/evaluated"]["value"] == 1 and found["drift/alarms"]["value"] == 1
    assert found["few/evaluated"]["value"] == 0
    assert found["reference/false_alarm_rate"]["n"] == 8 and "reference/power" in found
    assert found["moved/accuracy/intent"]["hi"] < found["reference/accuracy/intent"]["lo"]
    assert {"moved/p_data", "moved/p_descriptors", "moved/p_performance", "moved/energy"} <= found.keys()
    page = REPORT.read_text()
    assert len(page.encode()) < 8_000_000
    assert not re.search(r"""<(script|link|img|iframe)[^>]+(src|href)=["']?(https?:)?//""", page)
    assert "@import" not in page.split("<script>")[0] and "fewer than 50 rows" in page
    assert str(tmp_path) not in page


def test_two_processes_write_the_same_bytes(tmp_path: Path, tiny_model: Path) -> None:
    sample_logs(tmp_path / "logs")
    code = (
        "import json, sys, torch; torch.set_num_threads(2); torch.use_deterministic_algorithms(True)\n"
        "from stages.drift.__main__ import main\n"
        "from stages.drift.config import Drift\n"
        "print(json.dumps(main(Drift(**json.loads(sys.argv[1]))), sort_keys=True))"
    )
    section = json.dumps(vars(settings(model=str(tiny_model), null_draws=2)))
    seen = []
    for hash_seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": str(ROOT),
            "DO_NOT_TRACK": "1",
        }
        ran = subprocess.run(
            [sys.executable, "-c", code, section],
            check=False,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        seen.append((ran.stdout, (tmp_path / REPORT).read_bytes()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "logs", [{}, {"other": 80}, {"reference": 10, "other": 80}, {"reference": 80, "other": 9}]
)
def test_absent_evidence_is_not_evaluated(
    logs: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in logs.items():
        write_log(Path("logs"), name, log_rows(np.random.default_rng(1), count))
    assert main(settings()) == {"drift/evaluated": {"value": 0.0, "lo": 0.0, "hi": 0.0, "n": 1}}
    assert "not evaluated" in REPORT.read_text()
    assert "&lt;b&gt;" in not_evaluated("<b>")


GOOD = b'{"id": "1", "input": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", r"w\.jsonl:2: not valid JSON"),
        (b'{"id": "\xff"}', r"w\.jsonl:2: not valid JSON"),
        (b"[1]", r"w\.jsonl:2: a log row is a JSON object, not \[1\]"),
        (b'{"id": "1", "input": "a"}', r"w\.jsonl:2: a log row needs 'output'"),
        (b'{"id": "1", "input": 3, "output": "b"}', r"w\.jsonl:2: a log row needs 'input' as a string.* 3"),
        (GOOD[:-1] + b', "feedback": "good"}', r"w\.jsonl:2: 'feedback' is null or an object"),
    ],
)
def test_a_bad_row_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    log = tmp_path / "w.jsonl"
    log.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=message) as caught:
        read_window(log)
    assert "\n" not in str(caught.value)


def test_rows_are_limited_by_whole_conversations(tmp_path: Path) -> None:
    log = tmp_path / "w.jsonl"
    log.write_bytes(b"\n".join(GOOD[:-1] + b', "conversation": %d}' % (n // 3) for n in range(30)))
    rows = read_window(log)
    kept = limited(rows, 10, 1)
    assert len(kept) == 9 and kept == limited(rows, 10, 1) and limited(rows, 30, 1) == rows
    assert all(sum(row.conversation == other.conversation for other in kept) == 3 for row in kept)
    log.write_bytes(GOOD + b"\n" + GOOD)
    assert len({row.conversation for row in read_window(log)}) == 2  # no conversation, one id: two rows


def test_a_reserved_name_and_a_missing_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = log_rows(np.random.default_rng(1), 60)
    write_log(Path("logs"), "reference", rows)
    write_log(Path("logs"), "drift", rows)
    with pytest.raises(ValueError, match=r"drift\.jsonl"):
        main(settings())
    Path("logs/drift.jsonl").rename("logs/other.jsonl")
    with pytest.raises(ValueError, match="no model folder"):
        main(settings(model="nowhere"))


def test_embeddings_are_the_masked_mean_and_do_not_depend_on_the_batch(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["short", "a much longer message than the others here", "", "mid length"]
    found = embed({"a": texts, "b": texts[:1]}, tiny_model, 4)
    assert found["a"].shape == (4, 32) and np.isfinite(found["a"]).all()
    np.testing.assert_allclose(found["a"][0], found["b"][0], atol=1e-5)
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tiny_model)(texts[1], return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        hidden = network(**ids, output_hidden_states=True).hidden_states[-1]
    np.testing.assert_allclose(found["a"][1], hidden[0].mean(0).numpy(), atol=1e-5)


def test_fresh_draws_of_the_helpdesk_reference_rarely_alarm_and_the_drifted_one_does(
    tiny_model: Path,
) -> None:
    """Issue 2, show 2: at most 3 of 20 disjoint draws at the windows' size, from seeds of their own."""
    from ops.helpdesk.production import window

    def drawn(name: str, seed: int, count: int, *, drifted: bool = False) -> list[Row]:
        return parsed_rows([dict(row) for row in window(name, seed, count, drifted=drifted)])

    logs = {"reference": drawn("reference", 1, 600), "drifted": drawn("w", 99, 400, drifted=True)}
    logs |= {f"w{seed}": drawn("w", seed, 400) for seed in range(100, 120)}
    vectors = embed({name: [row.input[:60] for row in rows] for name, rows in logs.items()}, tiny_model, 256)

    def alarm(name: str) -> bool:
        matrix = distances(np.vstack([vectors["reference"], vectors[name]]))
        return decide(logs["reference"], logs[name], matrix, settings(), 3).alarm

    assert alarm("drifted")
    assert sum(alarm(f"w{seed}") for seed in range(100, 120)) <= 3
