"""Why rows are set aside once they can be read, in words, and which of these reasons belong together."""

from __future__ import annotations

SAME = ("duplicate", "near_duplicate")
OVERLAP = ("leak", "in_test")
WHY = {
    "duplicate": "says the same as an earlier row",
    "duplicate_id": "has the id of an earlier row that says something else",
    "in_test": "its question stands in the test split",
    "links_splits": "its question, or a near-duplicate, stands in another split",
    "near_duplicate": "nearly repeats an earlier row",
    "down_weighted": "left out by its source's weight",
    "leak": "overlaps an item that the model is tested on",
    "too_long": "more tokens than max_length",
    "template_refused": "the model's chat template refuses it",
    "answer_not_rendered": "the model's chat template does not show its answer as it is",
    "nothing_to_learn": "no token of it would be learned",
}
