"""Turn raw data into a prepared dataset: `python jobs/prepare.py SPEC.yaml [--set a.b=c]...`"""

from maas_ray import PrepareSpec, prepare
from maas_ray.cli import run_job

if __name__ == "__main__":
    run_job(PrepareSpec, prepare)
