"""A run on disk as objects: what the report, the guard and the model card read."""
