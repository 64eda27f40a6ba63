"""Whether a judge can be trusted: its file's tests, pairs with a known answer, canaries, and a close look at one judge."""
