"""Reads labelled examples from files: arrays, tables, pictures, datasets on disk."""
