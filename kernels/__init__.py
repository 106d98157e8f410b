"""Triton kernels, one operator a file; installed as ``pntk.kernels``."""
