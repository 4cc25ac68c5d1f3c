"""Attacks, one file each: file name = command-line name = section of audit.toml."""
