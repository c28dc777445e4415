"""From answers to verdicts to numbers: prompts, orders, ties, canaries, agreement and its correction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from stages.judge.pairs import INJECTION, Pair, canary_pairs, reply
from stages.judge.scores import agreement, corrected_win_rate, rogan_gladen
from stages.judge.verdicts import Asks, Chances, Judged, Rendered, judge_pairs, render
from tests.stages.judge_server import PROMPT


def by_rule(rule: Callable[[str, str], Chances | None]) -> Asks:
    """A judge that decides by `rule` on the two answers it is shown."""

    def ask(comparisons: Sequence[Rendered]) -> list[Chances | None]:
        shown = [item.user.split("\n\nA: ")[1].split("\n\nB: ") for item in comparisons]
        return [rule(first, second) for first, second in shown]

    return ask


def longest(first: str, second: str) -> Chances:
    return Chances(0.9, 0.1) if len(first) > len(second) else Chances(0.1, 0.9)


def pair(number: int, a: str, b: str, label: str = "A", kind: str = "agreement") -> Pair:
    return Pair(kind, "clear", f"p{number}", "why?", a, b, label)


# --- prompt, orders, ties


def test_answers_that_name_a_field_stay_text() -> None:
    assert (
        render(PROMPT, "q {answer_a}", "{answer_b}", "{x}").user == "q {answer_a}\n\nA: {answer_b}\n\nB: {x}"
    )


def test_both_orders_and_disagreement_is_a_tie() -> None:
    first_always = judge_pairs([pair(1, "aa", "b")], PROMPT, by_rule(lambda a, b: Chances(0.8, 0.2)))[0]
    assert (first_always.verdict_ab, first_always.verdict_ba, first_always.verdict) == ("A", "B", "tie")
    consistent = judge_pairs([pair(1, "aa", "b")], PROMPT, by_rule(longest))[0]
    assert (consistent.verdict_ab, consistent.verdict_ba, consistent.verdict) == ("A", "A", "A")
    assert consistent.ba == Chances(0.1, 0.9)  # as asked: B's answer stood first


def test_a_malformed_order_makes_a_tie_and_counts() -> None:
    judged = Judged(pair(1, "aa", "b"), Chances(1.0, 0.0), None)
    assert (judged.verdict, judged.verdict_ba, judged.malformed, judged.row()["p_first_ba"]) == (
        "tie",
        "malformed",
        1,
        None,
    )
    assert Judged(pair(1, "a", "b"), None, None).verdict == "tie"


def test_equal_answers_of_a_comparison_tie_unasked_and_canaries_are_asked() -> None:
    asked: list[Rendered] = []

    def ask(comparisons: Sequence[Rendered]) -> list[Chances | None]:
        asked.extend(comparisons)
        return [Chances(1.0, 0.0)] * len(comparisons)

    same = pair(1, "x", "x", "", "comparison")
    judged = judge_pairs([same, *canary_pairs([pair(2, "good", "bad")])], PROMPT, ask)
    assert (judged[0].verdict, judged[0].asked) == ("tie", False)
    assert len(asked) == 4 and sum(INJECTION in item.user for item in asked) == 2


def test_injection_goes_to_the_worse_answer() -> None:
    injected = [
        p for p in canary_pairs([pair(1, "a", "b", "A"), pair(2, "a", "b", "B")]) if p.group == "injection"
    ]
    assert [(p.answer_a, p.answer_b) for p in injected] == [("a", "b" + INJECTION), ("a" + INJECTION, "b")]


@pytest.mark.parametrize(
    ("answer", "judged"),
    [
        ('{"intent": "refund"}\nWe pay it back.', "We pay it back."),
        ('{"intent": "refund"}', ""),
        ('{"intent": "ref\nWe pay it back.', '{"intent": "ref\nWe pay it back.'),
        ("72\nso it is 72", "72\nso it is 72"),
        ("[" * 100_000 + "\nx", "[" * 100_000 + "\nx"),
        ("", ""),
    ],
)
def test_only_the_reply_is_judged(answer: str, judged: str) -> None:
    assert reply(answer) == judged


# --- numbers


def test_rogan_gladen_by_hand() -> None:
    assert rogan_gladen(0.66, 0.9) == pytest.approx(0.7)  # 0.7 * 0.9 + 0.3 * 0.1 = 0.66
    assert rogan_gladen(0.5, 0.8) == pytest.approx(0.5)
    assert (rogan_gladen(0.95, 0.8), rogan_gladen(0.1, 0.8)) == (1.0, 0.0)
    with pytest.raises(ValueError, match=r"0\.500"):
        rogan_gladen(0.9, 0.5)


def test_correction_widens_the_interval_and_needs_a_judge_above_chance() -> None:
    wins, good, weak = [1.0] * 66 + [0.0] * 34, [1.0] * 90 + [0.0] * 10, [1.0] * 60 + [0.0] * 40
    found, unsure = corrected_win_rate(wins, good, 1), corrected_win_rate(wins, weak, 1)
    assert found and unsure and found["value"] == pytest.approx(0.7)
    assert 0.5 < found["lo"] < 0.65 and 0.75 < found["hi"] < 0.9
    assert unsure["value"] == pytest.approx(1.0, abs=0.25) and unsure["lo"] < found["lo"]
    assert corrected_win_rate(wins, [0.5] * 100, 1) is None
    perfect = corrected_win_rate([1.0] * 50, [1.0] * 50, 1)
    assert perfect and perfect["value"] == 1.0 and perfect["lo"] < 1.0


def test_agreement_counts_ties_half() -> None:
    right, wrong, torn = Chances(0.9, 0.1), Chances(0.1, 0.9), Chances(0.8, 0.2)
    labelled = [Judged(pair(i, "a", "b"), right, wrong) for i in range(2)]
    labelled += [Judged(pair(3, "a", "b"), wrong, right), Judged(pair(4, "a", "b", "B"), torn, torn)]
    found = agreement(labelled, 1)
    assert found["judge/agreement"]["value"] == 2.5 / 4 and found["judge/ties"]["value"] == 0.25
    assert found["judge/agreement_decided"]["value"] == pytest.approx(2 / 3)
    assert found["judge/agreement/clear"]["n"] == 4 and found["judge/position_bias"]["value"] == 5 / 8
    assert found["judge/verdict_mass"]["value"] == pytest.approx(1.0)
