"""Several processes: collectives, sharding (FSDP2), the cluster (Ray) and a pool of engines on it."""
