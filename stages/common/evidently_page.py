"""Evidently's drawings inside a page of ours: the same bytes every time, and nothing in the data becomes markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|metric_[0-9a-f]{32}")
_DATA = re.compile(r"^( *var (?:additional_graphs_)?metric_[0-9a-f]{32} = )(.*)$", re.MULTILINE)


def drawn(widgets: Sequence[Any]) -> str:
    """Evidently's widgets as one stand-alone HTML page, library included (3.7 MB).

    The bytes are a function of the input: Evidently's random ids are numbered in order of appearance. Its data stands
    in a script as plain JSON, in which a text with "</script>" would end the script, so < is written as its escape.
    """
    from evidently.core.metric_types import render_widgets

    page = numbered(render_widgets(list(widgets)))
    return _DATA.sub(lambda match: match[1] + match[2].replace("<", "\\u003c"), page)


def framed(page: str, head: str, body: str) -> str:
    """Evidently's page with our `head` in its head and our `body` in front of its own."""
    return page.strip().replace("</head>", f"{head}</head>", 1).replace("<body>", f"<body>{body}", 1) + "\n"


def numbered(html: str) -> str:
    """Each distinct random id replaced by its number, in the shape that it had."""
    known: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        count = f"{len(known):032x}"
        plain = f"{count[:8]}-{count[8:12]}-{count[12:16]}-{count[16:20]}-{count[20:]}"
        return known.setdefault(match[0], f"metric_{count}" if match[0].startswith("metric_") else plain)

    return _IDS.sub(number, html)
