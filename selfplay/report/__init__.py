"""A run as a page, tables, figures, transcripts, a model card and a terminal table."""
