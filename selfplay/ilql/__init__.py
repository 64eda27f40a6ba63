"""Implicit language Q-learning (Snell et al. 2022): losses, Q and value heads, and the trainer that learns from rows."""
