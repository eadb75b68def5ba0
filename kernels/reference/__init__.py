"""Oracles: each operation as its definition says it, slow and plain, in float32 or the precision of its inputs."""
