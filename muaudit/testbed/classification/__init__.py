"""Known-answer classifiers: digits, tables and numbers to predict, and one file an unlearning method."""
