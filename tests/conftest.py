"""For all tests."""

# Before anybody imports the standard library's distutils: setuptools puts its own in that place and insists
# on being first, and compiling a model with PyTorch imports it late.
import setuptools  # noqa: F401
