"""The stages of an iteration. Each reads files and writes files, and can be run alone."""
