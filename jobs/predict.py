"""Predict every row of files with a version: `python jobs/predict.py SPEC.yaml [--set a.b=c]...`"""

from maas_ray import PredictSpec, predict
from maas_ray.cli import run_job

if __name__ == "__main__":
    run_job(PredictSpec, predict)
