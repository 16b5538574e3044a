"""Private names of Ray Train: callbacks, states and policies of its controller have no public way in."""

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback
from ray.train.v2._internal.execution.controller import state
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group.poll import _is_preempted_actor as is_preempted_actor
from ray.train.v2.torch.torch_trainer import TorchTrainer

__all__ = [
    "ControllerCallback",
    "DatasetsCallback",
    "DefaultFailurePolicy",
    "ElasticScalingPolicy",
    "FailureDecision",
    "NoopDecision",
    "ReportCallback",
    "ResizeDecision",
    "TorchTrainer",
    "WorkerHealthCheckFailedError",
    "is_preempted_actor",
    "state",
]
