"""Triton kernels, one operator a file; installed as ``pntk.kernels``.

Arguments are checked in ``pntk.projection.gpu_ops``.
"""
