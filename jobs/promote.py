"""Bring endpoints, and the alias they were deployed from, to a version: `python jobs/promote.py NAME/VERSION ALIAS`"""

from maas_ray.cli import main

if __name__ == "__main__":
    main("promote")
