"""Floating-point operations of every network by closed formulas."""
