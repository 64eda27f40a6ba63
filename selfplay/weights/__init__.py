"""Weights on disk and products with them: GGUF files, the precision of both, and what older readers need."""
