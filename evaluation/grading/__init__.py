"""Answers graded by rubrics: criteria with points, met or not, and the scores that follow."""
