"""Statistics of arrays of scores: intervals, tests, agreement, ratings, corrected rates."""
