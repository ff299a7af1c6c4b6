"""Kernels for the CPU: chains of NumPy calls over blocks that stay in cache, distributed over threads (`parallel.py`)."""

from autograd import backend

if backend.name != "numpy":  # they would be registered for arrays that they cannot read
    raise ImportError(
        f"autograd.kernels.cpu: imported on the {backend.name} backend, expected numpy; autograd.threads and autograd.inference are for every backend"
    )

from autograd.kernels.cpu import activation, attention, dropout, embedding, loss, malloc, matmul, normalization, optim, rotary  # noqa: F401

if backend.kernels != "reference":
    malloc.keep_freed_memory()
