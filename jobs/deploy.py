"""Serve a version at an endpoint: `python jobs/deploy.py SPEC.yaml [--set a.b=c]...`"""

from maas_ray import DeploySpec, deploy
from maas_ray.cli import run_job
from maas_ray.views.endpoints import show_deployed

if __name__ == "__main__":
    run_job(DeploySpec, deploy, show_deployed)
