"""Bring a version up behind a public name: `python jobs/deploy.py SPEC.yaml [--set a.b=c]...`"""

from maas_ray import DeploySpec, deploy
from maas_ray.cli import run_job
from maas_ray.views.status import show_deployed

if __name__ == "__main__":
    run_job(DeploySpec, deploy, show_deployed)
