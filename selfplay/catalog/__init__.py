"""Many runs: list them, tell two of them apart, and remove the weights that nobody needs any more."""
