"""Measurements of pntk: each entry checks its result against a reference, then times it."""
