"""Panels: one per signal, with its help and unit, and queries that stay readable with many layers."""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard
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
"""Maximum number of layers in a heat map: those with the worst values in the selected range."""
MOST_LINES = 10
"""Maximum number of layers in a panel with a line for each."""
EVERYTHING = -1e300
"""Cells at or below it are left out. Grafana's default is 1e-9, which hides zeros and negative numbers."""
UNITS = {"seconds": "s", "ratio": "percentunit", "bytes": "bytes", "dB": "suffix: dB"}
_SCRAPING = dict.fromkeys(("Time", "__name__", "instance", "job"), True)
_WORDS = {"rms": "RMS", "kl": "KL"}
_DIGITS = r"([^0-9]*)([0-9]%s)(|[^0-9].*)"
Panel = timeseries.Panel | heatmap.Panel | stat.Panel | table.Panel


@dataclass(frozen=True)
class Shown:
    """The metric of a panel, from its declaration.

    label: of its sites; empty for a metric of the run. low: small values are the bad ones. name: a title of its own.
    """

    metric: str
    help: str
    unit: str
    label: str = ""
    counter: bool = False
    low: bool = False
    name: str = ""

    @property
    def title(self) -> str:
        """The metric's name as a title, if it has no other."""
        words = self.metric.removeprefix("stabwatch_").removesuffix("_<name>").removesuffix("_total").split("_")
        text = self.name or " ".join(_WORDS.get(word, word) for word in words)
        return text[:1].upper() + text[1:]


def size(made: Panel) -> tuple[int, int]:
    """Columns, of 24, and height of a panel in Grafana's grid."""
    if isinstance(made, heatmap.Panel):
        return 8, 9  # forty layers, and a name for every other one
    return (12, 8) if isinstance(made, table.Panel) else (8, 4) if isinstance(made, stat.Panel) else (8, 7)


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
    return f"topk({MOST_LINES}, sum by (run, {shown.label}) ({grown}))" if shown.label else f"sum by (run) ({grown})"


def lines(shown: Shown, expr: str, legend: str = "") -> timeseries.Panel:
    """One line per series."""
    named = legend or (f"{{{{run}}}} {{{{{shown.label}}}}}" if shown.label else "{{run}}")
    made = (
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
    if shown.counter or shown.unit == "ratio":  # where all is zero, Grafana's axis goes to 100, or to 10,000 %
        made = made.axis_soft_max(1 if shown.counter else 0.01)
    return made


def in_order(expr: str) -> str:
    """Series with a label `at` by which they sort as their layers do in a model: the first number has three digits.

    Prometheus answers in the order of the labels, which puts `blocks.10` before `blocks.2`.
    """
    padded = f'label_replace({expr}, "at", "$1", "layer", "(.*)")'
    for digits, zeros in (("{2}", "0"), ("", "00")):
        padded = f'label_replace({padded}, "at", "${{1}}{zeros}${{2}}${{3}}", "layer", "{_DIGITS % digits}")'
    return padded


def heat(shown: Shown, ranged: str = "", expr: str = "") -> heatmap.Panel:
    """A heat map of layer by time, of the layers with the worst values: the largest, or the smallest where low is bad.

    Strong colours are bad values. expr: what to show in place of the metric; ranged: the same over `$__range`.
    """
    chosen = f'{shown.metric}{{run=~"$run", layer=~"$layer"}}'
    end, most = ("min", "bottomk") if shown.low else ("max", "topk")
    over = ranged or f"{end}_over_time({chosen}[$__range] @ end())"
    worst = f"{most}({MOST_LAYERS}, {end} by (layer) ({over}))"
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
            .reverse(shown.low)
            .steps(64)
        )
        .filter_values(heatmap.FilterValueRange().le(EVERYTHING))
        # not as `heatmap`: of buckets without a label `le`, Grafana shows the last one alone
        .with_target(query(f"{end} by (at, layer) ({in_order(expr or chosen)}) and on (layer) {worst}", "{{layer}}"))
    )


def number(title: str, help_: str, expr: str, colour: str = "") -> stat.Panel:
    """One large number. colour: of any but zero, which is green; without one, the colour of text."""
    steps = [dashboard.Threshold(None, "green"), dashboard.Threshold(1, colour)]
    return (
        stat.Panel()
        .title(title)
        .description(help_)
        .datasource(SOURCE)
        .unit("short")
        .thresholds(
            builders.ThresholdsConfig()
            .mode(dashboard.ThresholdsMode.ABSOLUTE)  # type: ignore[arg-type]
            .steps(steps if colour else [dashboard.Threshold(None, "text")])
        )
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_mode(BigValueColorMode.VALUE)  # type: ignore[arg-type]
        .graph_mode(BigValueGraphMode.NONE)  # type: ignore[arg-type]
        .with_target(query(expr, "").instant())
    )


def rows(title: str, help_: str, expr: str, *columns: str, value: str = "") -> table.Panel:
    """A table of the present labels and values of a query: labels in this order, then the value under its name.

    Without a name the value is left out, and so are the labels that the scrape adds.
    """
    left_out = _SCRAPING if value else {**_SCRAPING, "Value": True}
    order = {name: i for i, name in enumerate((*columns, "Value"))}
    organized = {"excludeByName": left_out, "indexByName": order, "renameByName": {"Value": value} if value else {}}
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
        .with_transformation(DataTransformerConfig(id_val="organize", options=organized))
        .with_target(query(expr, "").instant().format(PromQueryFormat.TABLE))  # type: ignore[arg-type]
    )


def query(expr: str, legend: str) -> prometheus.Dataquery:
    """A query of the selected data source."""
    return prometheus.Dataquery().ref_id("A").expr(expr).legend_format(legend).datasource(SOURCE)
