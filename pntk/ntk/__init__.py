"""Tangent kernels: from rows, and what describes them."""
