"""Kernels for NVIDIA GPUs: CUDA C++ in the `.cu` files, compiled by NVRTC at first use, and the Python that launches them.

A `.cu` file mirrors the file of `autograd/ops` that it speeds up; its header gives thread layout and bytes moved.
`python benchmarks/gpu.py` checks and measures them.
"""

from autograd.kernels.cuda import activation, attention, dropout, elementwise, embedding, loss, matmul, normalization, optim  # noqa: F401
