"""Kernels in Gluon, Triton's language in which warps are given their work by hand, for compute
capability 9.0."""
