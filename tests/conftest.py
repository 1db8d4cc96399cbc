"""Tests are of CPUs: they start more ranks than a machine may have GPUs. What test files import lasts."""

import gc
import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
gc.disable()  # until all is imported, as in hvd_llm.imports


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
