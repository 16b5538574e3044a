"""Measure a version on a split of a dataset: `python jobs/evaluate.py SPEC.yaml [--set a.b=c]...`"""

from maas_ray import EvaluateSpec, evaluate
from maas_ray.cli import run_job

if __name__ == "__main__":
    run_job(EvaluateSpec, evaluate)
