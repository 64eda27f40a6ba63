"""Files on disk: whole after a kill at any moment, checked when they are read, with their hashes and provenance."""
