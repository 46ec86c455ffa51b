"""How well trouble is detected: recall, lead, false alarms and causes, beside the detectors in use today."""
