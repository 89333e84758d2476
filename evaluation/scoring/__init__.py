"""Win rates, intervals, tests, agreement and text metrics."""
