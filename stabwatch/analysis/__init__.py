"""Post-hoc reading of runs: pure functions that return data; how it is shown is the CLI's business."""

from stabwatch.analysis.analyze import Analysis as Analysis
from stabwatch.analysis.analyze import analyze as analyze
from stabwatch.analysis.analyze import analyze_log as analyze_log
from stabwatch.analysis.analyze import analyze_run as analyze_run
from stabwatch.analysis.findings import Finding as Finding
from stabwatch.analysis.summaries import SeriesSummary as SeriesSummary
from stabwatch.analysis.verdict import Examination as Examination
from stabwatch.analysis.verdict import LogReport as LogReport
from stabwatch.analysis.verdict import examine as examine
