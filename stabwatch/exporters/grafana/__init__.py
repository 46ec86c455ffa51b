"""Grafana dashboards, generated from the declarations of signals, derived signals and rules."""

from stabwatch.exporters.grafana.dashboards import DASHBOARDS as DASHBOARDS
from stabwatch.exporters.grafana.dashboards import render as render
from stabwatch.exporters.grafana.dashboards import with_plugins as with_plugins
