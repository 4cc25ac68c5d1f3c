"""What attacks on language models share: prompts, judges, conversations, and what can be read in a network."""
