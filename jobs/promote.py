"""Point an alias at a version and update its endpoints: `python jobs/promote.py NAME/VERSION ALIAS`"""

from maas_ray.cli import main

if __name__ == "__main__":
    main("promote")
