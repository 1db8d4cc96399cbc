"""Reads run folders and nothing else: scaling reports."""
