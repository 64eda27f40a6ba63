"""Criteria that a program can check: IFEval's instructions, stories, languages, the surface of a text."""
