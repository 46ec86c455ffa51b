"""Rules, the step-exact engine, derived signals and the diagnosis. No torch here.

`themes/` declares the rules, and the derived signals (gauges) that they compare; `catalogue.py` collects them.
`features.py` has the building blocks of derived signals. `engine.py` evaluates the rules over records. `diagnosis.py`
turns incidents into causes, in order of onset.
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
