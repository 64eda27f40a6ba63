"""How a judge decides, one file per mode: pairwise, pointwise, listwise, rules, jury, and Python of the user's own.

A new mode is its settings in `judges/spec/modes.py` (a class and an entry in MODES), its judge in a file here, and an entry
in JUDGES of `judges/build.py`. Pointwise judges and rubrics share `pointwise`.
"""
