"""Measure a version on a split of a dataset: `python jobs/evaluate.py SPEC.yaml [--set a.b=c]...`"""

from maas_ray import EvaluateSpec, evaluate
from maas_ray.cli import run_job
from maas_ray.evaluation.report import Report, find
from maas_ray.views.evaluations import show_report


def show(report: Report) -> None:
    """Print the whole report, as `maas evaluate` does."""
    show_report(*find(report.uri))


if __name__ == "__main__":
    run_job(EvaluateSpec, evaluate, show)
