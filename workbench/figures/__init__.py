"""Plotly figures, one module a notebook: ``name(record, language="en") -> Figure``.

A figure reads a stage's record and never computes what a stage should have. Where its rows
are missing it says why in place of the plot. Each module lists its figures in ``FIGURES``,
in the order of reading; the report shows all of them.
"""
