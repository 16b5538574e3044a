"""Every private name of Ray that this package uses, and the reason why no public one does.

A release of Ray may remove or change any of them, so `pyproject.toml` pins Ray to one minor version and `check`
verifies all of them when a cluster is started. Nothing outside this room imports a private name of Ray.
"""
