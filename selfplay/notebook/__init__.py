"""A run in three lines of Python, without a recipe file: `train` makes it, `trained` is what it left."""
