"""Measurements of the library beside its peers; not part of the wheel."""
