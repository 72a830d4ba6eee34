"""Attention on GPUs: the writers of Triton kernels (`*_source`), what a call launches (`plan`), and
the launching itself (`launch`, `forward`).

Only `launch` imports triton, only `launch` and `forward` import torch: kernels are written, read
and compared on machines that have neither.
"""
