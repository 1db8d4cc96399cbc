"""Builds Horovod for the installed torch and this machine's MPI, and proves that it works."""
