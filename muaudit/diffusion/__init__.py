"""What attacks on image generators share: the networks, who judges an image, how prompts are attacked."""
