"""Panels: one per signal, with its help and unit, and queries that stay readable with many layers."""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    FieldTextAlignment,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    TableAutoCellOptions,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, DataTransformerConfig
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
MOST_LAYERS = 40
"""Maximum number of layers in a heat map: those with the largest values in the selected range."""
UNITS = {"seconds": "s", "ratio": "percentunit", "bytes": "bytes"}
_SCRAPING = dict.fromkeys(("Time", "__name__", "instance", "job"), True)
Panel = timeseries.Panel | heatmap.Panel | stat.Panel | table.Panel


@dataclass(frozen=True)
class Shown:
    """The metric of a panel, from its declaration. label: of its sites; empty for a metric of the run."""

    metric: str
    help: str
    unit: str
    label: str = ""
    counter: bool = False

    @property
    def title(self) -> str:
        """The metric's name as a title."""
        return (
            self.metric.removeprefix("stabwatch_")
            .removesuffix("_<name>")
            .removesuffix("_total")
            .replace("_", " ")
            .capitalize()
        )


def panel(shown: Shown) -> Panel:
    """A heat map of layer by time for a gauge with layers, lines for everything else."""
    if shown.counter:
        return lines(shown, counted(shown))
    if shown.label == "layer":
        return heat(shown)
    name = shown.metric.removesuffix("<name>")
    return lines(shown, f'{name}{{run=~"$run"}}' if name == shown.metric else any_name(name))


def any_name(prefix: str) -> str:
    """All metrics with this prefix, without the worst values of the last minute."""
    return f'{{__name__=~"{prefix}.*", __name__!~".*_window_(max|min)", run=~"$run"}}'


def counted(shown: Shown) -> str:
    """Increase of a counter by run and, if it has layers, of the largest ones."""
    grown = f'increase({shown.metric}{{run=~"$run"}}[$__rate_interval])'
    return f"topk(10, sum by (run, {shown.label}) ({grown}))" if shown.label else f"sum by (run) ({grown})"


def lines(shown: Shown, expr: str, legend: str = "") -> timeseries.Panel:
    """One line per series."""
    named = legend or (f"{{{{run}}}} {{{{{shown.label}}}}}" if shown.label else "{{run}}")
    return (
        timeseries.Panel()
        .title(shown.title)
        .description(shown.help)
        .datasource(SOURCE)
        .unit(UNITS.get(shown.unit, "short"))
        .draw_style(GraphDrawStyle.LINE)
        .fill_opacity(0)
        .line_width(1)
        .span_nulls(True)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)  # type: ignore[arg-type]
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .with_target(query(expr, named))
    )


def heat(shown: Shown) -> heatmap.Panel:
    """A heat map of layer by time, of the layers with the largest values."""
    chosen = f'{shown.metric}{{run=~"$run", layer=~"$layer"}}'
    largest = f"topk({MOST_LAYERS}, max by (layer) (max_over_time({chosen}[$__range] @ end())))"
    return (
        heatmap.Panel()
        .title(shown.title)
        .description(shown.help)
        .datasource(SOURCE)
        .unit(UNITS.get(shown.unit, "short"))
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)  # type: ignore[arg-type]
            .scheme("Oranges")
            .steps(64)
        )
        .with_target(
            query(f"max by (layer) ({chosen}) and on (layer) {largest}", "{{layer}}").format(
                PromQueryFormat.HEATMAP  # type: ignore[arg-type]
            )
        )
    )


def number(title: str, help_: str, expr: str, unit: str = "short") -> stat.Panel:
    """One large number."""
    return (
        stat.Panel()
        .title(title)
        .description(help_)
        .datasource(SOURCE)
        .unit(unit)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(BigValueColorMode.VALUE)  # type: ignore[arg-type]
        .graph_mode(BigValueGraphMode.NONE)  # type: ignore[arg-type]
        .with_target(query(expr, "").instant())
    )


def rows(title: str, help_: str, expr: str) -> table.Panel:
    """A table of the present labels and values of a query, without the labels that the scrape adds."""
    return (
        table.Panel()
        .title(title)
        .description(help_)
        .datasource(SOURCE)
        .unit("short")
        .show_header(True)
        .align(FieldTextAlignment.AUTO)  # type: ignore[arg-type]
        .cell_options(TableAutoCellOptions())
        .inspect(False)
        .with_transformation(DataTransformerConfig(id_val="organize", options={"excludeByName": _SCRAPING}))
        .with_target(query(expr, "").instant().format(PromQueryFormat.TABLE))  # type: ignore[arg-type]
    )


def query(expr: str, legend: str) -> prometheus.Dataquery:
    """A query of the selected data source."""
    return prometheus.Dataquery().ref_id("A").expr(expr).legend_format(legend).datasource(SOURCE)
