"""Training on token ids with TRL: trainers that stop and resume exactly, supervised, on rewards and on pairs (DPO)."""
