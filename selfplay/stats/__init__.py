"""Statistics: arrays and votes in, numbers with intervals out. No torch, no files."""
