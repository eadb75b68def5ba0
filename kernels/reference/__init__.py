"""Oracles: each operation as its definition says it, slow and plain, in the precision of its inputs (float32 at least)."""
