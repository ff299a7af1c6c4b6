"""Kernels for the CPU: chains of NumPy calls over blocks that stay in cache, distributed over threads (`parallel.py`)."""

from autograd import backend
from autograd.kernels.cpu import activation, attention, dropout, embedding, loss, malloc, matmul, normalization, optim, rotary  # noqa: F401

if backend.kernels != "reference":
    malloc.keep_freed_memory()
