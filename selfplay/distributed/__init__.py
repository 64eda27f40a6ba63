"""Several processes: collectives."""
