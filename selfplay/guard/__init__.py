"""Over-optimisation: the alarms, and which iteration to keep."""
