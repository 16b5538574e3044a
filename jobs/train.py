"""Train a network on a prepared dataset and register it: `python jobs/train.py SPEC.yaml [--set a.b=c]...`"""

from maas_ray import TrainSpec, train
from maas_ray.cli import run_job

if __name__ == "__main__":
    run_job(TrainSpec, train)
