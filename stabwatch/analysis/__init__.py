"""Post-hoc analysis of runs: pure functions that return data. The CLI formats the data."""

from stabwatch.analysis.analyze import Analysis as Analysis
from stabwatch.analysis.analyze import analyze as analyze
from stabwatch.analysis.analyze import analyze_source as analyze_source
from stabwatch.analysis.sources import open_source as open_source
from stabwatch.analysis.sources import open_sources as open_sources
from stabwatch.analysis.summaries import SeriesSummary as SeriesSummary
