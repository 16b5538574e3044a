"""What a user writes to deploy a version, and the arguments of the two application builders.

Serve's builders take their argument's type from the annotation, so this module must not turn annotations
into strings (`from __future__ import annotations`).
"""

import json
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from maas_ray.errors import DeploymentError
from maas_ray.spec import Name, Spec

GATEWAY_APP = "maas-gateway"
GATEWAY_DEPLOYMENT = "Gateway"
SHARED_APP = "maas-shared"
SHARED_DEPLOYMENT = "Shared"
MAX_TIMEOUT_S = 3600.0

_NOT_THE_USER_S = {
    "model": "it is the version's bundle",
    "tokenizer": "it is the version's bundle",
    "served_model_name": "it is the endpoint's name",
    "hf_config_path": "it is the version's bundle",
    "load_format": "a bundle's weights are safetensors",
    "trust_remote_code": "nothing in a bundle is run",
    "max_num_seqs": "set max_ongoing_requests",
    "max_loras": "set max_adapters",
    "distributed_executor_backend": "it is Ray",
    "data_parallel_size": "set scaling.min_replicas and max_replicas",
}


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


_GENERATING, _PREDICTING = ("openvino", "transformers", "vllm"), ("onnxruntime", "torch", "torch.compile")


class ServingOptions(Spec):
    """How a replica works."""

    scaling: Scaling = Scaling()
    """How many replicas."""
    resources: Resources = Resources()
    """What each takes."""
    engine: Literal["auto", "openvino", "transformers", "vllm", "onnxruntime", "torch", "torch.compile"] = "auto"
    """What computes. auto: for text, on the CPU OpenVINO where it can take the model, on GPUs vLLM where it is
    installed, else Transformers; for tasks that predict, on the CPU ONNX Runtime where the bundle carries `model.onnx`,
    else Torch."""
    vllm: dict[str, Any] = {}
    """vLLM's own engine arguments, such as `max_model_len`, `gpu_memory_utilization` (which says how much memory keys
    and values get), `dtype`; `enable_lora: true` and `max_lora_rank` for adapters. `tensor_parallel_size` is all of
    `resources.gpus`, or what `pipeline_parallel_size` leaves of them."""
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
    max_adapters: int = Field(4, ge=1)
    """LoRA adapters that a replica keeps loaded; each takes the memory of a further model. The one that was asked
    longest ago makes room for another."""

    @property
    def threads(self) -> int:
        """Threads that a replica computes with."""
        return max(1, int(self.resources.cpus))

    def check_kind(self, kind: str) -> None:
        """See that the engine is one for a task's kind.

        Raises:
            DeploymentError: it is not.
        """
        fitting = _GENERATING if kind == "generate" else _PREDICTING
        if self.engine not in ("auto", *fitting):
            raise DeploymentError(
                f"engine: {self.engine} is not for this model's task; take auto, {', '.join(fitting)}."
            )

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

    @model_validator(mode="after")
    def _vllm_as_it_is_run(self) -> Self:
        gpus = self.resources.gpus
        takes = gpus >= 1 and gpus.is_integer()
        if self.engine == "vllm" and not takes:
            raise ValueError(f"engine: vllm computes on whole GPUs; set resources.gpus to 1 or more, not {gpus:g}.")
        if self.vllm and (not takes or self.engine not in ("auto", "vllm")):
            raise ValueError("vllm: is for engine vllm, on whole GPUs; leave it out, or set engine and resources.gpus.")
        for name, instead in _NOT_THE_USER_S.items():
            if name in self.vllm:
                raise ValueError(f"vllm.{name}: is not to be set here; {instead}.")
        parallel = [self.vllm.get(f"{kind}_parallel_size") for kind in ("tensor", "pipeline")]
        if not all(size is None or (type(size) is int and size > 0) for size in parallel):
            raise ValueError("vllm.tensor_parallel_size and vllm.pipeline_parallel_size: are whole numbers above 0.")
        tensor, pipeline = parallel[0], parallel[1] or 1
        if self.vllm and (gpus % pipeline or (tensor is not None and tensor * pipeline != gpus)):
            raise ValueError(
                f"resources.gpus is {gpus:g}, and vllm.tensor_parallel_size × vllm.pipeline_parallel_size "
                f"{tensor or '?'} × {pipeline}; leave the first of them out, or make them equal."
            )
        return self


class DeploySpec(ServingOptions):
    """`maas deploy`: a version behind a public name."""

    version: str = Field(min_length=1)
    """The version: `name@alias` or `name/number`."""
    endpoint: Name | None = None
    """Public model name. None: the registered model's name."""
    replicas: Literal["own", "shared"] = "own"
    """own: replicas that serve this endpoint alone. shared: the platform's (`MAAS_SHARED`), which load a model when it
    is asked for and keep those used last: for models that are too small, or asked too seldom, for their own."""
    placement_timeout_s: float = Field(60, gt=0)
    """Longest wait for room on the cluster, seconds; raise it where nodes are started on demand."""
    startup_timeout_s: float = Field(300, gt=0)
    """Longest that a replica may take to load once it has room, seconds."""
    direct: bool = False
    """Answer `/v2/models/NAME` on the model's own replicas, without a hop over the gateway: more requests a second; but
    what a replica works on when it dies fails, where the gateway would ask another."""
    adapters: dict[Name, str] = {}
    """LoRA adapters of this version, each a version `name@alias` or `name/number`, by name: `french` is the public
    model `ENDPOINT:french`. Aliases mean what they do now; adapters come and go without restarting the model."""
    smoke: dict[str, Any] | None = None
    """A request's body, as a client sends it, that must be answered before the version gets traffic. None: one of the
    task's own kind."""

    @model_validator(mode="after")
    def _adapters_find_weights(self) -> Self:
        if self.adapters and self.compression != "none":
            raise ValueError(
                f"compression: {self.compression} leaves no weights that adapters fit; leave it out, or adapters."
            )
        if self.adapters and self.engine == "vllm" and not self.vllm.get("enable_lora"):
            raise ValueError(
                "adapters: with engine vllm they need vllm.enable_lora: true (and max_lora_rank, if above 16)."
            )
        return self

    @model_validator(mode="after")
    def _what_is_shared_is_not_asked_for(self) -> Self:
        for name, default in (("scaling", Scaling()), ("resources", Resources()), ("direct", False)):
            if self.replicas == "shared" and getattr(self, name) != default:
                raise ValueError(
                    f"{name}: an endpoint with `replicas: shared` has none of its own; leave it out, say it of all "
                    "shared replicas (the file that MAAS_SHARED names), or set replicas to own."
                )
        return self


class ModelArgs(ServingOptions):
    """Arguments of `maas_ray.serve.model_app:build`."""

    endpoint: Name
    """Public model name."""
    version: str = Field(min_length=1)
    """The version: `name@alias` or `name/number`; resolved when the application is built."""


class SharedArgs(Spec):
    """Arguments of `maas_ray.serve.shared:build`, and what stands in the file that `MAAS_SHARED` names."""

    scaling: Scaling = Scaling()
    """How many shared replicas, by the requests for all models; with 0 as the fewest none is kept warm."""
    resources: Resources = Resources()
    """What each takes, for all its models together."""
    max_models: int = Field(16, ge=1)
    """Models that a replica keeps loaded; the one used longest ago makes room."""
    weights_gb: float = Field(4, gt=0)
    """Weights that a replica keeps loaded, GB of their files; a model of more needs replicas of its own. What a
    generating model takes beside them, its `kv_cache_gb` bounds."""
    max_ongoing_requests: int = Field(128, ge=1)
    """Requests a replica works on at once, for all models; of one model, what its own options say."""
    max_queued_requests: int = Field(256, ge=1)
    """Requests that wait for a replica, at each gateway; more are refused with 429."""
    request_timeout_s: float = Field(300, gt=0, le=MAX_TIMEOUT_S)
    """How long a replica that goes may work on what it has, seconds."""


class SharedModel(Spec):
    """What a shared replica needs to know of a model to load it."""

    uri: str
    """The bundle."""
    digest: str
    """What it must hold."""
    name: str
    """Public model name."""
    number: str
    """The version's number."""
    kind: Literal["generate", "predict"]
    """See `maas_ray.tasks.Task`."""
    weights: int = Field(ge=0)
    """Its weights, bytes."""
    options: ServingOptions
    """How to work; scaling and resources are the replica's."""

    @property
    def id(self) -> str:
        """All of it, as Serve's id of the model: a replica needs to be told nothing else."""
        document = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(document, sort_keys=True, separators=(",", ":"))


class ServedModel(Spec):
    """A model application that a gateway built from a config file routes to."""

    endpoint: Name
    """Public model name."""
    version: str = Field(min_length=1)
    """The version, as the model application's arguments have it."""
    application: str = Field(min_length=1)
    """The Serve application that serves it."""
    replicas: Literal["own", "shared"] = "own"
    """shared: the application is one of `maas_ray.serve.shared:build`, and the model works by the default options."""
    request_timeout_s: float = Field(300, gt=0, le=MAX_TIMEOUT_S)
    """Longest that one request may take, seconds."""
    adapters: dict[Name, str] = {}
    """LoRA adapters by name, as in a `DeploySpec`."""


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
