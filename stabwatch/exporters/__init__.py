"""What leaves a run log: one file per destination. No torch here."""
