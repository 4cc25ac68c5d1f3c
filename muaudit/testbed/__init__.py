"""Known-answer models: generated people, a trainer, and one file an unlearning method."""
