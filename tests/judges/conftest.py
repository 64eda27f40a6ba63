"""Makes `judging` and `criteria_for_tests` importable for the tests in the folders below."""
