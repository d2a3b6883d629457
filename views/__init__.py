"""Figures of models, for look.py, docs/ and the pages of races."""
