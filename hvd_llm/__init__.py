"""Horovod brought up to date for training language models."""
