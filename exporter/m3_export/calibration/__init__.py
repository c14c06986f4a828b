"""Texts, and the activation statistics that are gathered on them."""
