"""Resources that one replica reserves, and the nodes that it may run on, as Ray's options of an actor."""

import re
from typing import Any

from pydantic import Field, field_validator

from maas_ray.errors import InvalidError
from maas_ray.spec import Spec

# As Ray has it: a value, `!value`, `in(a, b)` or `!in(a, b)`, in the syntax of labels in Kubernetes.
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"([a-zA-Z0-9.-]{{1,253}}/)?{_LABEL}")
_SELECTOR = re.compile(rf"!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))")


class Resources(Spec):
    """Resources that one replica reserves on the cluster."""

    cpus: float = Field(1.0, gt=0)
    """CPUs, and the number of threads that it computes with."""
    gpus: float = Field(0.0, ge=0)
    """GPUs. 0 computes on the CPU."""
    accelerator_type: str | None = Field(None, min_length=1)
    """Type of the GPUs by Ray's name, such as `H100` or `A100-80G`. None: any."""
    labels: dict[str, str] = {}
    """Labels that a node must have: `{ray.io/market-type: on-demand}`. A value may be `!spot`, `in(a, b)` or
    `!in(a, b)`."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory, GB: weights, twice while a model is converted, and `kv_cache_gb`. Ray places a replica on a machine that
    has so much unreserved, and does not limit it. None: it reserves none, and machines are filled by their CPUs."""

    @field_validator("labels")
    @classmethod
    def _valid_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if not _KEY.fullmatch(key) or not _SELECTOR.fullmatch(value):
                raise InvalidError(
                    "invalid_label",
                    f"{key}: {value!r} is not a label that Ray can select by; write a value, !value, in(a, b) or "
                    "!in(a, b), of letters, digits, '-', '_' and '.'.",
                )
        return labels

    def actor_options(self) -> dict[str, Any]:
        """Ray's options of an actor that reserves these resources."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            **({} if self.memory_gb is None else {"memory": self.memory_gb * 1e9}),
            **({} if self.accelerator_type is None else {"accelerator_type": self.accelerator_type}),
            **({"label_selector": self.labels} if self.labels else {}),
        }
