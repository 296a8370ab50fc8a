"""Choosing: trials of a method's parameters, and the best of them."""
