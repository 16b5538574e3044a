"""What a user writes to deploy a version, and the arguments of the two application builders.

Serve's builders take their argument's type from the annotation, so this module must not turn annotations
into strings (`from __future__ import annotations`).
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from maas_ray.spec import Name, Spec

GATEWAY_APP = "maas-gateway"
GATEWAY_DEPLOYMENT = "Gateway"
MAX_TIMEOUT_S = 3600.0


class Scaling(Spec):
    """How many replicas serve a model; Serve adds and removes them by the requests in flight."""

    min_replicas: int = Field(1, ge=0)
    """Fewest replicas; 0 lets an idle model stop, at the price of a cold start."""
    max_replicas: int = Field(4, ge=1)
    """Most replicas."""
    target_ongoing_requests: float = Field(16, gt=0)
    """Requests in flight that one replica should have; above it replicas are added."""
    downscale_delay_s: float = Field(600, ge=0)
    """How long fewer replicas must have been enough before one goes, seconds; the last one too, where 0 are kept."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas}); raise max_replicas."
            )
        return self


class Resources(Spec):
    """What one replica takes from the cluster."""

    cpus: float = Field(1, gt=0)
    """CPUs; also the number of threads it computes with."""
    gpus: float = Field(0, ge=0)
    """GPUs; 0 computes on the CPU."""


class ServingOptions(Spec):
    """How a replica works."""

    scaling: Scaling = Scaling()
    """How many replicas."""
    resources: Resources = Resources()
    """What each takes."""
    engine: Literal["auto", "openvino", "transformers"] = "auto"
    """What generates text. auto: on the CPU OpenVINO where it can take the model, else Transformers."""
    compression: Literal["none", "int8", "int4"] = "none"
    """Bits that OpenVINO keeps of a weight: fewer are faster and smaller, and change the answers."""
    max_ongoing_requests: int = Field(32, ge=1)
    """Requests a replica works on at once; also the largest continuous batch of a generating model."""
    max_queued_requests: int = Field(64, ge=1)
    """Requests that wait for a replica, at each gateway; more are refused with 429."""
    request_timeout_s: float = Field(300, gt=0, le=MAX_TIMEOUT_S)
    """Longest that one request may take, seconds; then it is cancelled and answered with 504."""
    max_batch_size: int = Field(16, ge=1)
    """Rows computed together, for tasks that predict."""
    batch_wait_ms: float = Field(2, ge=0)
    """Longest that a row waits for others to share its batch, milliseconds."""
    kv_cache_gb: float = Field(2, gt=0)
    """Memory for keys and values, GB, for tasks that generate; less is taken where less suffices."""
    prefill_tokens: int = Field(512, ge=32)
    """Tokens computed in one step, for tasks that generate; longer prompts are cut into such pieces."""

    @property
    def threads(self) -> int:
        """Threads that a replica computes with."""
        return max(1, int(self.resources.cpus))

    @model_validator(mode="after")
    def _openvino_where_it_works(self) -> Self:
        if self.resources.gpus and self.engine == "openvino":
            raise ValueError("engine: openvino computes on the CPU; set resources.gpus to 0, or engine to auto.")
        if self.compression != "none" and (self.resources.gpus or self.engine == "transformers"):
            raise ValueError(
                f"compression: {self.compression} is OpenVINO's, which computes on the CPU; leave it out, or set "
                "resources.gpus to 0 and engine to auto."
            )
        return self


class DeploySpec(ServingOptions):
    """`maas deploy`: a version behind a public name."""

    version: str = Field(min_length=1)
    """The version: `name@alias` or `name/number`."""
    endpoint: Name | None = None
    """Public model name. None: the registered model's name."""
    placement_timeout_s: float = Field(60, gt=0)
    """Longest wait for room on the cluster, seconds; raise it where nodes are started on demand."""
    startup_timeout_s: float = Field(300, gt=0)
    """Longest that a replica may take to load once it has room, seconds."""
    smoke: dict[str, Any] | None = None
    """A request's body, as a client sends it, that must be answered before the version gets traffic. None: one of the
    task's own kind."""


class ModelArgs(ServingOptions):
    """Arguments of `maas_ray.serve.model_app:build`."""

    endpoint: Name
    """Public model name."""
    version: str = Field(min_length=1)
    """The version: `name@alias` or `name/number`; resolved when the application is built."""


class ServedModel(Spec):
    """A model application that a gateway built from a config file routes to."""

    endpoint: Name
    """Public model name."""
    version: str = Field(min_length=1)
    """The version, as the model application's arguments have it."""
    application: str = Field(min_length=1)
    """The Serve application that serves it."""
    request_timeout_s: float = Field(300, gt=0, le=MAX_TIMEOUT_S)
    """Longest that one request may take, seconds."""


class GatewayArgs(Spec):
    """Arguments of `maas_ray.serve.gateway:build`."""

    models: tuple[ServedModel, ...] = ()
    """What is served under which name."""
    body_limit_mb: float = Field(16, gt=0)
    """Largest request body, MB (10⁶ bytes); a larger one is answered with 413."""
    min_replicas: int = Field(1, ge=1)
    """Fewest gateway replicas."""
    max_replicas: int = Field(4, ge=1)
    """Most gateway replicas."""
    grpc_host: str | None = None
    """Address that gRPC listens on. None: MAAS_HTTP_HOST."""
    grpc_port: int | None = Field(None, ge=0, le=65535)
    """Port of gRPC, on every machine with a gateway replica; 0: none. None: MAAS_GRPC_PORT."""
