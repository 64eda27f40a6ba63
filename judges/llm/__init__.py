"""Asking a language model for a verdict: messages from templates, calls, the cache, and reading what it said."""
