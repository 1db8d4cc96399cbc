"""Tests are of CPUs: they start more ranks than a machine may have GPUs."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
