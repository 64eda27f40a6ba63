"""Prompts: where they come from, how untrusted text is shown to a judge, stories and instructions."""
