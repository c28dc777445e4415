"""The distributions behind a verdict, drawn by Evidently, with our tests and thresholds in it.

Evidently's own choice of tests alarms on pure noise, so its table shows the p-values that
the verdict used; only the drawing is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.common.evidently_page import drawn
from stages.drift.descriptors import Columns, categorical, numeric


def render(windows: Mapping[str, tuple[Columns, float]]) -> str:
    """One stand-alone HTML page, a section per window: name -> (descriptors, largest p that counts).

    The bytes are a function of the input.
    """
    from evidently.legacy.renderers.html_widgets import group_widget

    _register_tests()
    groups = [
        group_widget(title=f"Window “{name}” against the reference", widgets=[_table(columns, cut)])
        for name, (columns, cut) in windows.items()
        if columns.numbers or columns.categories
    ]
    return drawn(groups)


def _register_tests() -> None:
    """Make the verdict's two tests known to Evidently by name (once more is harmless)."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def ks(reference: Any, window: Any, _type: Any, cut: float) -> tuple[float, bool]:
        p = numeric(np.asarray(reference), np.asarray(window))[3]
        return p, p <= cut

    def chi_squared(reference: Any, window: Any, _type: Any, cut: float) -> tuple[float, bool]:
        p = categorical(list(reference), list(window))[3]
        return p, p <= cut

    register_stattest(StatTest("lathe_ks", "Kolmogorov-Smirnov p", [ColumnType.Numerical]), ks)
    register_stattest(StatTest("lathe_chi2", "chi-squared p", [ColumnType.Categorical]), chi_squared)


def _table(columns: Columns, cut: float) -> Any:
    """The preset's table of columns; its banner (an alarm if half of the columns drift) is left out."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(
        numerical_columns=list(columns.numbers), categorical_columns=list(columns.categories)
    )
    sides = [
        Dataset.from_pandas(
            pd.DataFrame(
                {name: values[side] for name, values in (columns.numbers | columns.categories).items()}
            ),
            definition,
        )
        for side in (0, 1)
    ]
    preset = DataDriftPreset(
        num_method="lathe_ks",
        cat_method="lathe_chi2",
        num_threshold=cut,
        cat_threshold=cut,
        include_tests=False,
    )
    table = Report([preset]).run(sides[1], sides[0]).to_snapshot_model().widgets[-1]
    rows = table.params["data"]
    table.params |= {"data": rows[::-1], "rowsPerPage": len(rows)}  # what moved most first, all on one page
    return table
