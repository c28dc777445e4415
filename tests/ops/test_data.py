"""ops.data brings files into data/raw and under DVC, and refuses before anything changes."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest
import yaml

from ops import data
from stages.common.files import read_jsonl, tree_digest, write_jsonl
from tests.life import Clone, fresh

CHAT = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
WORDS = [{"question": f"{n} and {n}?", "answer": f"#### {2 * n}", "n": n} for n in range(3)]


@pytest.fixture
def clone(source: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    made = fresh(source, tmp_path / "lathe")
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder with the files a person would bring."""
    write_jsonl(tmp_path / "in/train.jsonl", WORDS)
    write_jsonl(tmp_path / "in/test.jsonl", WORDS[:1])
    write_jsonl(tmp_path / "in/labels.jsonl", [{"id": "1", "label": "A"}])
    write_jsonl(tmp_path / "in/2026-10.jsonl", [{"id": "1", "input": "?"}])
    return tmp_path / "in"


def test_every_file_lands_in_its_folder_and_under_dvc(clone: Clone, rows: Path) -> None:
    files = {name: str(rows / f"{name}.jsonl") for name in ("train", "test", "labels", "2026-10")}
    given = ["--train", files["train"], "--test", files["test"], "--labels", files["labels"]]
    output = clone.module("ops.data", "sums", *given, "--logs", files["2026-10"]).stdout
    target = clone.root / "data/raw/sums"
    assert "commit data/raw/sums.dvc" in output
    for name in ("rows/train", "rows/test", "labels/labels", "production/2026-10"):
        assert (target / f"{name}.jsonl").read_bytes() == (rows / f"{Path(name).name}.jsonl").read_bytes()
    [out] = yaml.safe_load((clone.root / "data/raw/sums.dvc").read_text())["outs"]
    assert (out["path"], out["hash"]) == ("sums", "md5")
    assert clone.run("git", "check-ignore", "data/raw/sums").stdout  # the rows are DVC's, not git's


def test_what_was_not_given_is_an_empty_folder_that_lasts(clone: Clone, rows: Path) -> None:
    """DVC stops on a missing dependency, so a colleague's checkout has to bring the empty folders too."""
    clone.module("ops.data", "sums", "--train", str(rows / "train.jsonl"))
    subprocess.run(["rm", "-rf", str(clone.root / "data/raw/sums")], check=True)
    clone.dvc("checkout", "data/raw/sums.dvc")
    assert sorted(path.name for path in (clone.root / "data/raw/sums").iterdir()) == sorted(data.FOLDERS)


@pytest.mark.parametrize(("kind", "texts"), [(CHAT, ["Hi\nHello"]), (WORDS[:1], ["#### 0\n0 and 0?"])])
def test_training_rows_become_text_to_pretrain_on(
    clone: Clone, tmp_path: Path, kind: list[dict[str, object]], texts: list[str]
) -> None:
    write_jsonl(tmp_path / "some.jsonl", kind)
    data.main(["mine", "--train", str(tmp_path / "some.jsonl")])
    made = read_jsonl(clone.root / "data/raw/mine/pretrain/train.jsonl")
    assert [row["text"] for row in made] == texts


def test_rows_of_another_kind_keep_their_kind(clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"question,answer\n1 and 1?,2\n"))
    data.main(["table", "--train", str(tmp_path / "rows.csv.gz")])
    assert (clone.root / "data/raw/table/rows/train.csv.gz").is_file()
    [made] = read_jsonl(clone.root / "data/raw/table/pretrain/train.jsonl")
    assert made == {"text": "1 and 1?\n2"}


def test_gsm8k_with_its_conf_is_ready_for_an_experiment(clone: Clone, rows: Path) -> None:
    """The command in conf/experiment/gsm8k.yaml makes the files that conf/data/gsm8k.yaml names."""
    clone.module(
        "ops.data", "gsm8k", "--train", str(rows / "train.jsonl"), "--test", str(rows / "test.jsonl")
    )
    conf = yaml.safe_load((clone.root / "conf/data/gsm8k.yaml").read_text())
    for source in conf["sources"].values():
        [row, *_] = read_jsonl(clone.root / conf["path"] / source["files"][0])
        assert {source["columns"]["prompt"], source["columns"]["answer"]} <= set(row)


def test_replace_swaps_the_files(clone: Clone, rows: Path) -> None:
    data.main(["sums", "--train", str(rows / "train.jsonl"), "--test", str(rows / "test.jsonl")])
    data.main(["sums", "--train", str(rows / "test.jsonl"), "--replace"])
    kept = clone.root / "data/raw/sums/rows"
    assert [path.name for path in kept.glob("*.jsonl")] == ["train.jsonl"]
    assert (kept / "train.jsonl").read_bytes() == (rows / "test.jsonl").read_bytes()
    assert "data/raw/sums" not in clone.dvc("status", "data/raw/sums.dvc").stdout


REFUSED = {
    "Sums": "the name 'Sums' is not lower-case",
    "../sums": "the name '../sums' is not lower-case",
    "helpdesk": "data/raw/helpdesk exists: --replace",
}


@pytest.mark.parametrize(("name", "said"), REFUSED.items(), ids=REFUSED)
def test_a_bad_name_is_refused(clone: Clone, rows: Path, name: str, said: str) -> None:
    before = tree_digest(clone.root / "data")
    done = clone.run(*command(name, rows / "train.jsonl"), ok=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"data: {said}")
    assert done.stderr.count("\n") == 1
    assert tree_digest(clone.root / "data") == before


@pytest.mark.parametrize("option", ["--train", "--test", "--labels", "--logs"])
def test_a_missing_file_is_refused_before_anything_is_copied(clone: Clone, rows: Path, option: str) -> None:
    before = tree_digest(clone.root / "data")
    given = {"--train": rows / "train.jsonl"} | {option: rows / "absent.jsonl"}
    with pytest.raises(ValueError, match=r"absent\.jsonl does not exist"):
        data.main(["sums", *(str(part) for pair in given.items() for part in pair)])
    assert tree_digest(clone.root / "data") == before


def test_two_logs_of_one_name_are_refused(clone: Clone, rows: Path) -> None:
    log = str(rows / "2026-10.jsonl")
    with pytest.raises(ValueError, match="same file name"):
        data.main(["sums", "--train", str(rows / "train.jsonl"), "--logs", log, log])
    assert not (clone.root / "data/raw/sums").exists()


def test_rows_that_cannot_be_read_come_in_as_they_are(clone: Clone, rows: Path) -> None:
    """prepare rejects them with line number and reason; bringing them in must neither stop nor drop them."""
    broken = b'no json\n\xff\xfe\n[1, 2]\n{"messages": [1, {"role": "user"}]}\n{"messages": "x"}\n{"a": "\\ud800"}\n'
    (rows / "train.jsonl").write_bytes(broken + (rows / "train.jsonl").read_bytes())
    data.main(["sums", "--train", str(rows / "train.jsonl")])
    target = clone.root / "data/raw/sums"
    assert (target / "rows/train.jsonl").read_bytes() == (rows / "train.jsonl").read_bytes()
    assert len(list(read_jsonl(target / "pretrain/train.jsonl"))) == len(WORDS) + 2


def test_a_file_of_the_dataset_itself_can_be_given_to_replace_it(clone: Clone, rows: Path) -> None:
    data.main(["sums", "--train", str(rows / "train.jsonl")])
    data.main(["sums", "--train", "data/raw/sums/rows/train.jsonl", "--replace"])
    kept = clone.root / "data/raw/sums/rows/train.jsonl"
    assert kept.read_bytes() == (rows / "train.jsonl").read_bytes()
    assert [path.name for path in (clone.root / "data/raw").glob(".*.draft")] == []


def command(name: str, train: Path) -> list[str]:
    return ["python", "-m", "ops.data", name, "--train", str(train)]


def test_a_folder_that_dvc_does_not_take_is_one_line(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no DVC repository
    with pytest.raises(ValueError, match=r"dvc add data/raw/sums failed: .*not inside of a DVC repo") as no:
        data.main(["sums", "--train", str(rows / "train.jsonl")])
    assert "\n" not in str(no.value)
