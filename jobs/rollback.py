"""Serve an earlier version of an endpoint again: `python jobs/rollback.py ENDPOINT [--to NUMBER]`"""

from maas_ray.cli import main

if __name__ == "__main__":
    main("rollback")
