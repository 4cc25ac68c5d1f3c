"""Scores and bounds of membership and privacy: pure functions on numbers, which know nothing of models or attacks."""
