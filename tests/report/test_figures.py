"""Every figure of every stage: drawn from whole records, honest about empty ones."""

from __future__ import annotations

import importlib
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
import pytest

from workbench.figures.theme import ARM_COLOURS, MOST_POINTS
from workbench.records.stage_record import StageRecord
from workbench.roadmap import STAGES
from workbench.wording.text import LANGUAGES

MODULES = {name: importlib.import_module(f"workbench.figures.{name}") for name in STAGES}
DRAWERS = [
    pytest.param(name, draw, id=f"{name}.{draw.__name__}")
    for name, module in MODULES.items()
    for draw in module.FIGURES
]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("name", "draw"), DRAWERS)
def test_a_whole_record_is_drawn(shared_run, name: str, draw, language: str) -> None:
    drawn = draw(shared_run.record(name), language)
    assert isinstance(drawn, go.Figure)
    assert len(drawn.data) > 0
    assert drawn.layout.title.text
    titles = [drawn.layout.xaxis.title.text, drawn.layout.yaxis.title.text]
    assert any(titles) or drawn.data[0].type == "table"
    assert "undefined" not in drawn.to_json()


@pytest.mark.parametrize(("name", "draw"), DRAWERS)
def test_an_empty_record_gives_a_reason_in_place_of_a_plot(name: str, draw, tmp_path: Path) -> None:
    drawn = draw(StageRecord(name, tmp_path), "en")
    assert len(drawn.data) == 0
    assert "not measured" in drawn.layout.annotations[0].text


def test_the_recorded_reason_is_shown(make_run) -> None:
    drawn = MODULES["measure_ab"].energy(make_run().record("measure_ab"))
    assert "no power meter answered here" in drawn.layout.annotations[0].text


def test_an_arm_has_one_colour_everywhere(shared_run) -> None:
    names = {"full precision": "full_precision", "ternary": "ternary", "hybrid": "hybrid"}
    seen = 0
    for name, module in MODULES.items():
        if name == "hybrid_plan":
            continue  # there "ternary" is a precision of a layer
        for draw in module.FIGURES:
            for trace in draw(shared_run.record(name)).data:
                if trace.name in names:
                    colour = (trace.marker.color or trace.line.color) if trace.marker else None
                    colour = colour or trace.line.color
                    assert colour == ARM_COLOURS[names[trace.name]]
                    seen += 1
    assert seen >= 10


def test_intervals_are_error_bars_and_a_missing_one_draws_none(tmp_path: Path) -> None:
    record = StageRecord("measure_ab", tmp_path)
    record.measured("model_memory_mb", 10.0, "MB", "counted", arm="full_precision")
    record.measured("model_memory_mb", 4.0, "MB", "counted", lo=3.0, hi=6.0, arm="ternary")
    full, ternary = MODULES["measure_ab"].memory(record).data
    assert not full.error_x.visible
    assert (ternary.error_x.array[0], ternary.error_x.arrayminus[0]) == (2.0, 1.0)


def test_what_a_layer_loses_has_its_interval_in_the_figure_and_in_the_table(make_run) -> None:
    record = make_run().record("hybrid_plan")
    drawn = MODULES["hybrid_plan"].sensitivity(record)
    assert drawn.data[0].error_x.array[0] == pytest.approx(0.002)
    (table,) = MODULES["hybrid_plan"].sensitivity_table(record).data
    assert list(table.header["values"][1:]) == [
        "ternary: bits a byte lost", "INT8: bits a byte lost", "decided",
    ]  # fmt: skip
    rows = record.table("sensitivity")
    assert len(table.cells["values"][0]) == rows["layer"].nunique()
    assert "[" in table.cells["values"][1][0] and "high precision" in table.cells["values"][3]
    record.save_table("sensitivity", rows.assign(lo=float("nan"), hi=float("nan")))
    record.facts["sensitivity"] = {"no_interval": "no interval: 6 groups, a bootstrap needs 64"}
    assert not MODULES["hybrid_plan"].sensitivity(record).data[0].error_x.visible
    bare = MODULES["hybrid_plan"].sensitivity_table(record)
    assert "[" not in bare.data[0].cells["values"][1][0]
    assert bare.layout.annotations[0].text.startswith("too few for an interval: 6")
    record.save_table("sensitivity", rows.drop(columns=["lo", "hi"]))  # of an older run
    assert not MODULES["hybrid_plan"].sensitivity(record).data[0].error_x.visible


def test_the_arms_under_load_stand_side_by_side_with_their_reasons(make_run) -> None:
    record = make_run().record("measure_ab")
    drawn = MODULES["measure_ab"].under_load(record)
    assert [trace.name for trace in drawn.data][:2] == ["full precision", "ternary"]
    assert len(drawn.data[0].y) == 6 and drawn.data[0].error_x.visible
    (table,) = MODULES["measure_ab"].under_load_table(record).data
    assert len(table.cells["values"][0]) == 1 + 3 * 2
    assert "requests/s" in table.cells["values"][1][0]
    bare = StageRecord("measure_ab", record.folder)
    bare.missing("ttft_ms", "ms", "left out", arm="ternary", source="load", quantile="p50")
    drawn = MODULES["measure_ab"].under_load(bare)
    assert "left out" in drawn.layout.annotations[0].text


def test_each_load_stands_in_the_legend_once_though_a_piece_has_no_windows(make_run) -> None:
    record = make_run().record("profile_load")
    rows = record.table("likeness")
    record.save_table(
        "likeness", rows[(rows["load"] != "piece") | (rows["figure"] != "window_rate")]
    )
    drawn = MODULES["profile_load"].likeness(record)
    named = [line.legendgroup for line in drawn.data if line.showlegend]
    assert sorted(named) == ["generated", "piece", "whole"]


def test_long_training_is_thinned(make_run) -> None:
    record = make_run().record("train_qat")
    rows = record.table("loss")
    longer = rows.loc[rows.index.repeat(40)].reset_index(drop=True)
    longer["step"] = longer.groupby("arm").cumcount()
    record.save_table("loss", longer)
    for trace in MODULES["train_qat"].loss(record).data:
        assert len(trace.x) <= MOST_POINTS + 1


def test_flips_are_told_layer_by_layer(make_run) -> None:
    record = make_run().record("train_qat")
    (drawn,) = MODULES["train_qat"].flips(record).data
    rows = record.table("layers").set_index(["layer", "step"])["flip_rate"]
    assert list(drawn.x) == ["100", "150", "200", "250", "300"], "the first look has none"
    assert drawn.y[0] == "0 · q_proj"
    assert (drawn.zmin, drawn.zmax) == (0, pytest.approx(100 * rows.max()))
    name = rows.index[0][0]
    assert drawn.z[0][1] == pytest.approx(100 * rows[name, 150])


def test_histograms_go_from_the_first_look_to_the_last(make_run) -> None:
    record = make_run().record("train_qat")
    names = [trace.name for trace in MODULES["train_qat"].histograms(record).data]
    assert names == ["step 0", "step 120", "step 180", "step 240", "step 300"]
    rows = record.table("histograms")
    record.save_table("histograms", rows[rows["step"] == 300])
    (only,) = MODULES["train_qat"].histograms(record).data
    widths = 0.2 / 40
    assert sum(only.y) * widths == pytest.approx(1.0)


def test_notebooks_store_the_plotly_mime_type_alone() -> None:
    assert plotly.io.renderers.default == "plotly_mimetype"
