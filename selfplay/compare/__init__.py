"""Comparing checkpoints: statistics with error bars, head-to-head matches, figures and the report."""
