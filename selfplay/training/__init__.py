"""Training on token ids with TRL: trainers that stop and resume exactly, their checkpoints, supervised training."""
