"""Text-to-image models that have unlearned a concept, made of sketches whose truth is known."""
