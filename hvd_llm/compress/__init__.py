"""Compressors: one idea per file, no communication in it."""
