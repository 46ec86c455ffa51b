"""The dashboards and their panels. Every signal and every derived signal has a panel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, GridPos, VariableRefresh

from stabwatch.alerts import DERIVED, RULES
from stabwatch.exporters.declared import adopt, declared
from stabwatch.exporters.grafana.panels import SOURCE, Panel, Shown, heat, lines, number, panel, rows, size
from stabwatch.signals import CATALOGUE, Signal

_FLEET = ("host", "step")
_SPECTRA = ("matrix", "matrix_update", "residual", "writer")
_RANGES, _RANGE = ("output_rms", "activation_gradient_rms"), "10m"
_RUN = ("learning_rate", "loss_scale", "skipped_steps_total")


def _low_is_bad() -> set[str]:
    """Derived signals that rules bound from below and none bounds from above; measured ones declare it themselves."""
    conditions = [c for rule in RULES for threshold in rule.thresholds for c in threshold.when]
    above = {c.gauge for c in conditions if c.above is not None}
    return {c.gauge for c in conditions if c.below is not None} - above - {signal.name for signal in CATALOGUE}


_LOW = _low_is_bad()


@dataclass(frozen=True)
class Page:
    """One dashboard. rows: title and panels of each. own: plugin signals, in a row at the end."""

    uid: str
    title: str
    description: str
    rows: Callable[[], list[tuple[str, list[Panel]]]]
    by_layer: bool = False
    own: tuple[Shown, ...] = ()

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.uid}.json"


def _of(signal: Signal) -> Shown:
    low = signal.worst == "min"
    return Shown(signal.metric, signal.help, signal.unit, signal.label, signal.kind == "counter", low)


def where(signal: Signal) -> str:
    """Dashboard of a signal."""
    if signal.tap == "attention":
        return "attention"
    if signal.tap in _FLEET and signal.name not in _RUN:
        return "fleet"
    if signal.tap in _SPECTRA or signal.tap == "step":
        return "spectra"
    return "layers" if signal.label == "layer" else "run"


def _signals(page: str) -> list[Panel]:
    return [panel(_of(s)) for s in CATALOGUE if where(s) == page]


def _derived(page: str) -> list[Panel]:
    out = []
    for gauge in DERIVED:
        place = "attention" if gauge.name.startswith("attention") else "run" if gauge.scope == "run" else "layers"
        if place == page:
            unit = "1" if gauge.unit == "ratio" else gauge.unit  # a ratio to an earlier value, not a share
            label = "layer" if gauge.scope == "layer" else ""
            out.append(panel(Shown(gauge.metric, gauge.help, unit, label, low=gauge.name in _LOW)))
    return out


def _overview() -> list[tuple[str, list[Panel]]]:
    firing = 'stabwatch_alerts_firing{severity="%s"} == 1'
    return [
        (
            "Runs and alerts",
            [
                number("Runs watched", "Runs with a reachable agent.", "count(stabwatch_run_info)"),
                number("Critical", "Critical alerts that fire.", f'count({firing % "critical"}) or vector(0)', "red"),
                number("Warnings", "Warnings that fire.", f'count({firing % "warning"}) or vector(0)', "orange"),
                rows("Firing alerts", "Rule, run and layer of each firing alert.", "stabwatch_alerts_firing == 1",
                     "severity", "rule", "layer", "run"),
                rows("Most frequent alerts", "Rules and layers that fired most often, by run.",
                     "topk(20, stabwatch_rule_violations_total > 0)", "rule", "layer", "run", value="times"),
                lines(Shown("stabwatch_alerts_firing", "Alerts that fire, by run and severity.", "1"),
                      'sum by (run, severity) (stabwatch_alerts_firing{run=~"$run"})', "{{run}} {{severity}}"),
                lines(Shown("stabwatch_loss", "Training loss.", "nat"), 'stabwatch_loss{run=~"$run"}'),
                lines(Shown("stabwatch_gradient_norm", "Norm of all gradients.", "1"),
                      'stabwatch_gradient_norm_before_clip{run=~"$run"} or stabwatch_gradient_norm{run=~"$run"}'),
                lines(Shown("stabwatch_step", "Last step.", "1"), 'stabwatch_step{run=~"$run"}'),
            ],
        )
    ]  # fmt: skip


def _run() -> list[tuple[str, list[Panel]]]:
    offending = rows(
        "Top layers",
        "Layers with the most alerts.",
        'topk(10, sum by (layer, rule) (stabwatch_rule_violations_total{run=~"$run", layer!=""}))',
        "layer",
        "rule",
        value="times",
    )
    return [("The run", [*_signals("run"), offending]), ("Derived signals", _derived("run"))]


def _layers() -> list[tuple[str, list[Panel]]]:
    groups: dict[str, list[Panel]] = {}
    for signal in CATALOGUE:
        if where(signal) == "layers":
            groups.setdefault(signal.tap.replace("_", " ").capitalize(), []).append(panel(_of(signal)))
    return [*groups.items(), ("Derived signals", _derived("layers")), ("Ranges", [_range(name) for name in _RANGES])]


def _range(name: str) -> Panel:
    """How far a signal of each layer goes up and down, over its mean (ScaleLong)."""
    series = f'stabwatch_{name}{{run=~"$run", layer=~"$layer"}}'

    def over(window: str) -> str:
        return f"(max_over_time({window}) - min_over_time({window})) / avg_over_time({window})"

    text = f"Largest less smallest value of {name} over {_RANGE}, over its mean."
    shown = Shown(f"stabwatch_{name}", text, "ratio", "layer")
    named = replace(shown, name=f"{shown.title}: range")
    return heat(named, over(f"{series}[$__range] @ end()"), over(f"{series}[{_RANGE}]"))


def _attention() -> list[tuple[str, list[Panel]]]:
    return [("Trend and limit", _derived("attention")), ("Attention", _signals("attention"))]


def _spectra() -> list[tuple[str, list[Panel]]]:
    return [("Spectra and geometry", _signals("spectra"))]


def _fleet() -> list[tuple[str, list[Panel]]]:
    counters = [
        Shown("stabwatch_series_dropped_total", "Series above the agent's limit.", "1", counter=True),
        Shown("stabwatch_agent_errors_total", "Exceptions caught in the agent.", "1", counter=True),
        Shown("stabwatch_collect_errors_total", "Metric families that could not be built.", "1", counter=True),
    ]
    state = rows("Runs", "State, host and model of every run.",
                 'max by (run, state) (stabwatch_run_state == 1) * on (run) group_left (host, model, world_size) '
                 "stabwatch_run_info", "state", "run", "model", "host", "world_size")  # fmt: skip
    late = lines(
        Shown("", "Seconds since the last step.", "seconds", name="Time since the last step"),
        'time() - stabwatch_last_step_timestamp_seconds{run=~"$run"}',
    )
    return [("Fleet and overhead", [state, late, *_signals("fleet"), *(panel(c) for c in counters)])]


DASHBOARDS: tuple[Page, ...] = (
    Page("stabwatch-overview", "stabwatch / Overview", "Runs with alerts, their onset and cause.", _overview),
    Page(
        "stabwatch-run",
        "stabwatch / Run",
        "Loss, gradient norm, learning rate and all other signals of the run as a whole.",
        _run,
    ),
    Page(
        "stabwatch-layers",
        "stabwatch / Layers",
        "Heat maps of layer by time for every signal that has layers.",
        _layers,
        True,
    ),
    Page("stabwatch-attention", "stabwatch / Attention", "Attention logits, entropy, heads.", _attention, True),
    Page("stabwatch-spectra", "stabwatch / Spectra and geometry", "Singular values, tokens, geometry.", _spectra, True),
    Page("stabwatch-fleet", "stabwatch / Fleet and overhead", "Runs, hosts, pace, and stabwatch itself.", _fleet),
)


def with_plugins(signals: Iterable[Mapping[str, Any]]) -> tuple[Page, ...]:
    """The dashboards with panels for the plugin signals that a run's meta.json declares."""
    known = [dict(s) for s in signals if isinstance(s.get("name"), str) and s["name"] not in CATALOGUE]
    adopt(known)
    own: dict[bool, dict[str, Shown]] = {True: {}, False: {}}
    for s in known:
        d = declared(s["name"])
        own[bool(d.label)][d.metric] = Shown(d.metric, d.help, str(s.get("unit", "")), d.label, d.counter)
    place = {"stabwatch-layers": True, "stabwatch-run": False}
    return tuple(
        replace(page, own=tuple(own[place[page.uid]].values())) if page.uid in place else page for page in DASHBOARDS
    )


def build(page: Page) -> dashboard.Dashboard:
    """The dashboard of a page."""
    made = (
        dashboard.Dashboard(page.title)
        .uid(page.uid)
        .description(page.description)
        .tags(["stabwatch"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_label("run", "stabwatch_run_info"))
        .annotation(_alerts())
        .link(
            dashboard.DashboardLink("stabwatch")
            .type(DashboardLinkType.DASHBOARDS)  # type: ignore[arg-type]
            .tags(["stabwatch"])
            .include_vars(True)
            .keep_time(True)
        )
    )
    if page.by_layer:
        made = made.with_variable(_label("layer", 'stabwatch_output_rms{run=~"$run"}'))
    top, ids = 0, iter(range(1, 10_000))
    own = [("Signals of plugins", [panel(shown) for shown in page.own])] if page.own else []
    for title, panels in [*page.rows(), *own]:
        made = made.with_row(dashboard.Row(title).id(next(ids)).grid_pos(GridPos(h=1, w=24, x=0, y=top)))
        top += 1
        for line in _grid(panels):
            left, height = 0, max(size(each)[1] for each in line)
            for each in line:
                at = GridPos(h=height, w=size(each)[0], x=left, y=top)
                made = made.with_panel(each.id(next(ids)).grid_pos(at))
                left += at.w
            top += height
    return made


def _grid(panels: Iterable[Panel]) -> list[list[Panel]]:
    """Panels in lines of at most 24 columns."""
    out: list[list[Panel]] = [[]]
    for each in panels:
        if sum(size(other)[0] for other in (*out[-1], each)) > 24:
            out.append([])
        out[-1].append(each)
    return [line for line in out if line]


def _label(name: str, metric: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({metric}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .multi(True)
    )


def _alerts() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Alerts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertname=~"Stabwatch.+", alertstate="firing", run=~"$run"}')
    )


def render(page: Page) -> str:
    """A dashboard as JSON, ending with a newline."""
    text: str = JSONEncoder(sort_keys=True, indent=2).encode(build(page).build())
    return json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
