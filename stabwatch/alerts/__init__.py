"""Rules, the step-exact engine, derived signals and the diagnosis. No torch here.

`catalogue.py` declares the rules; `derived.py` (by layer) and `scalars.py` (of the run) compute the gauges that they
compare, from the rings of points in `points.py`; `engine.py` evaluates them over records; `diagnosis.py` orders what
fired into causes.
"""

from stabwatch.alerts.catalogue import DERIVED as DERIVED
from stabwatch.alerts.catalogue import RULES as RULES
from stabwatch.alerts.diagnosis import Cause as Cause
from stabwatch.alerts.diagnosis import Diagnosis as Diagnosis
from stabwatch.alerts.diagnosis import diagnose as diagnose
from stabwatch.alerts.engine import Engine as Engine
from stabwatch.alerts.features import DerivedSignal as DerivedSignal
from stabwatch.alerts.rule import Alert as Alert
from stabwatch.alerts.rule import Rule as Rule
