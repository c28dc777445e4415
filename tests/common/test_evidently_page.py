"""Evidently inside our pages: ids by appearance, and data that stays data."""

from __future__ import annotations

from html.parser import HTMLParser

from stages.common.evidently_page import drawn, framed, numbered


class Tags(HTMLParser):
    """Every tag that a browser would open, scripts skipped as a browser does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def test_ids_are_numbered_by_appearance() -> None:
    a, b = "01890a5d-ac96-774b-bcce-b302099a8057", "metric_" + "0f" * 16
    zero, one = "00000000-0000-0000-0000-000000000000", "metric_" + "0" * 31 + "1"
    assert numbered(f"{a} {b} {a}") == f"{zero} {one} {zero}"


def test_a_text_in_the_data_neither_ends_the_script_nor_the_head() -> None:
    from evidently.legacy.renderers.html_widgets import text_widget

    page = drawn([text_widget(text="</script></head><body><marquee>\u2028", title="t")])
    framed_page = framed(page, "<title>t</title>", "<p>ours</p>")
    tags = Tags()
    tags.feed(framed_page)
    assert "marquee" not in tags.seen and tags.seen.count("body") == 1
    assert tags.seen.index("title") < tags.seen.index("body") == tags.seen.index("p") - 1
    assert framed_page == framed(drawn([text_widget(text="</script></head><body><marquee>\u2028", title="t")]),
                                 "<title>t</title>", "<p>ours</p>")  # fmt: skip
