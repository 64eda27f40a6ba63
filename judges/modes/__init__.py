"""How a judge decides, one file per mode: pairwise, pointwise, listwise, rules, jury, and Python of the user's own."""
