"""Databases and frameworks, one module and one extra each. None of them is imported before it is asked for."""
