"""Weights on disk: GGUF files, the precision that a checkpoint came in, and what older readers need."""
