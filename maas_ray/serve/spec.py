"""Specs of serving: a deployment, and the arguments of the application builders.

Serve's builders take their argument's type from the annotation, so this module must not turn annotations
into strings (`from __future__ import annotations`).
"""

import json
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from maas_ray.errors import DeploymentError, InvalidError
from maas_ray.registry.references import Reference
from maas_ray.serve.resources import Resources
from maas_ray.spec import Name, Spec

GATEWAY_APP = "maas-gateway"
GATEWAY_DEPLOYMENT = "Gateway"
SHARED_APP = "maas-shared"
SHARED_DEPLOYMENT = "Shared"
MAX_TIMEOUT_S = 3600.0

_RESERVED_VLLM_OPTIONS = {
    "model": "the version's bundle determines it",
    "tokenizer": "the version's bundle determines it",
    "served_model_name": "the endpoint's name determines it",
    "hf_config_path": "the version's bundle determines it",
    "load_format": "a bundle's weights are safetensors",
    "trust_remote_code": "code in a bundle is never run",
    "max_num_seqs": "set max_ongoing_requests",
    "max_loras": "set max_adapters",
    "distributed_executor_backend": "the backend is Ray",
    "data_parallel_size": "set scaling.min_replicas and max_replicas",
}


class Scaling(Spec):
    """Number of replicas that serve a model. Serve adds and removes them by the requests in flight."""

    min_replicas: int = Field(1, ge=0)
    """Minimum of replicas. 0 lets an idle model stop, at the price of a cold start."""
    max_replicas: int = Field(4, ge=1)
    """Maximum of replicas."""
    target_ongoing_requests: float | None = Field(None, gt=0)
    """Requests in flight that one replica should have. Above it, replicas are added. A request of several rows or
    sequences counts as so many. None: half of `max_ongoing_requests`."""
    downscale_delay_s: float = Field(600.0, ge=0)
    """Time for which fewer replicas must suffice before one is removed, seconds. It also holds for the last one."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise InvalidError(
                "min_above_max",
                f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas}); raise max_replicas.",
            )
        return self

    def target(self, max_ongoing_requests: int) -> float:
        """Requests in flight that one replica should have."""
        return self.target_ongoing_requests or max_ongoing_requests / 2

    def check_target(self, max_ongoing_requests: int) -> None:
        """Check that a replica can have as many requests as it should have.

        Raises:
            InvalidError: it cannot.
        """
        if self.target(max_ongoing_requests) > max_ongoing_requests:
            raise InvalidError(
                "target_out_of_reach",
                f"scaling.target_ongoing_requests ({self.target_ongoing_requests:g}) is above max_ongoing_requests "
                f"({max_ongoing_requests}), so replicas would never be added; lower it, or remove it.",
            )


_GENERATING, _PREDICTING = ("openvino", "transformers", "vllm"), ("onnxruntime", "torch", "torch.compile")


class ServingOptions(Spec):
    """Options of a model's replicas."""

    scaling: Scaling = Scaling()
    """Number of replicas."""
    resources: Resources = Resources()
    """Resources of each replica."""
    engine: Literal["auto", "openvino", "transformers", "vllm", "onnxruntime", "torch", "torch.compile"] = "auto"
    """Engine that computes. auto generates text with OpenVINO on the CPU if it supports the model, with vLLM on GPUs if
    that is installed, else with Transformers; it predicts with ONNX Runtime on the CPU if the bundle has `model.onnx`,
    else with Torch."""
    vllm: dict[str, Any] = {}
    """vLLM's own engine arguments, such as `max_model_len`, `gpu_memory_utilization` (which also determines the memory
    of keys and values), `dtype`; `enable_lora: true` and `max_lora_rank` for adapters. `tensor_parallel_size` is by
    default `resources.gpus` divided by `pipeline_parallel_size`."""
    compression: Literal["none", "int8", "int4"] = "none"
    """Precision of weights in OpenVINO. Fewer bits are faster and smaller, and change the answers."""
    max_ongoing_requests: int = Field(32, ge=1)
    """Requests that a replica works on at once, and the largest continuous batch of a model that generates."""
    max_queued_requests: int = Field(64, ge=1)
    """Requests that wait at each replica, and at each gateway for a first replica. Further ones get status 429."""
    request_timeout_s: float = Field(300.0, gt=0, le=MAX_TIMEOUT_S)
    """Timeout of one request, seconds. It is then cancelled and gets status 504."""
    max_batch_size: int = Field(16, ge=1)
    """Rows in one batch, for tasks that predict."""
    batch_wait_ms: float = Field(2.0, ge=0)
    """Longest wait of a row for others in its batch, milliseconds."""
    kv_cache_gb: float = Field(2.0, gt=0)
    """Memory for keys and values, GB, for tasks that generate. Less is used if less suffices."""
    prefill_tokens: int = Field(512, ge=32)
    """Tokens of a prompt in one step, for tasks that generate. Longer prompts take several steps."""
    tool_calls: Literal[
        "auto", "none", "hermes", "mistral", "deepseek", "qwen3_coder", "glm", "minimax", "kimi", "llama"
    ] = "auto"
    """Format in which the model writes tool calls, for tasks that generate. auto: the format that the chat template
    renders. none: calls stay text."""
    max_adapters: int = Field(4, ge=1)
    """LoRA adapters that a replica keeps loaded, each with the memory of a further model. The least recently used one
    is evicted."""

    @property
    def threads(self) -> int:
        """Threads of a replica."""
        return max(1, int(self.resources.cpus))

    def check_kind(self, kind: str) -> None:
        """Check that the engine supports a task's kind.

        Raises:
            DeploymentError: it does not.
        """
        fitting = _GENERATING if kind == "generate" else _PREDICTING
        if self.engine not in ("auto", *fitting):
            raise DeploymentError(
                f"engine: {self.engine} does not support this model's task; set it to auto or {', '.join(fitting)}.",
                code="engine_unfit",
            )

    @model_validator(mode="after")
    def _target_in_reach(self) -> Self:
        self.scaling.check_target(self.max_ongoing_requests)
        return self

    @model_validator(mode="after")
    def _openvino_on_the_cpu(self) -> Self:
        if self.resources.gpus and self.engine == "openvino":
            raise InvalidError(
                "engine_needs_cpu",
                "engine: openvino computes on the CPU; set resources.gpus to 0, or engine to auto.",
            )
        if self.compression != "none" and (self.resources.gpus or self.engine == "transformers"):
            raise InvalidError(
                "compression_needs_openvino",
                f"compression: {self.compression} requires OpenVINO, which computes on the CPU; remove it, or set "
                "resources.gpus to 0 and engine to auto.",
            )
        return self

    @model_validator(mode="after")
    def _vllm_on_whole_gpus(self) -> Self:
        gpus = self.resources.gpus
        whole = gpus >= 1 and gpus.is_integer()
        if self.engine == "vllm" and not whole:
            raise InvalidError(
                "engine_needs_gpu",
                f"engine: vllm computes on whole GPUs; set resources.gpus to 1 or more, not {gpus:g}.",
            )
        if self.vllm and (not whole or self.engine not in ("auto", "vllm")):
            raise InvalidError(
                "vllm_options_unused",
                "vllm: is for engine vllm on whole GPUs; remove it, or set engine and resources.gpus.",
            )
        for name, instead in _RESERVED_VLLM_OPTIONS.items():
            if name in self.vllm:
                raise InvalidError("vllm_option_reserved", f"vllm.{name}: cannot be set; {instead}.")
        parallel = [self.vllm.get(f"{kind}_parallel_size") for kind in ("tensor", "pipeline")]
        if not all(size is None or (type(size) is int and size > 0) for size in parallel):
            raise InvalidError(
                "vllm_parallel_size",
                "vllm.tensor_parallel_size and vllm.pipeline_parallel_size: must be whole numbers above 0.",
            )
        tensor, pipeline = parallel[0], parallel[1] or 1
        if self.vllm and (gpus % pipeline or (tensor is not None and tensor * pipeline != gpus)):
            raise InvalidError(
                "vllm_parallel_size",
                f"resources.gpus is {gpus:g}, but vllm.tensor_parallel_size × vllm.pipeline_parallel_size is "
                f"{tensor or '?'} × {pipeline}; remove tensor_parallel_size, or make them equal.",
            )
        return self


class DeploySpec(ServingOptions):
    """`maas deploy`: a version that is served at an endpoint."""

    version: Reference = Field(min_length=1)
    """The version: `name@alias` or `name/number`."""
    endpoint: Name | None = None
    """Public model name. None: the registered model's name."""
    replicas: Literal["own", "shared"] = "own"
    """own: replicas that serve only this endpoint. shared: the platform's shared replicas (`MAAS_SHARED`), which load a
    model at its first request and evict the least recently used. They suit models that are small or rarely used."""
    strategy: Literal["blue_green", "recreate"] = "blue_green"
    """blue_green: a new version starts beside the old one, and takes over without a pause. recreate: the old replicas
    finish their requests and stop first, for a cluster without room for both, such as one GPU. Requests wait meanwhile.
    The old version starts again if the new one fails."""
    placement_timeout_s: float | None = Field(None, gt=0)
    """Longest wait for free resources on the cluster, seconds. None: 60, or 900 if nodes are started on demand."""
    startup_timeout_s: float = Field(300.0, gt=0)
    """Longest time for a replica to load once it has its resources, seconds."""
    direct: bool = False
    """true bypasses the gateway for `/models/NAME` and `/v2/models/NAME`. Throughput rises several-fold, but the
    requests of a replica that dies fail. The gateway would have retried them on another."""
    adapters: dict[Name, Reference] = {}
    """LoRA adapters by name, each a version `name@alias` or `name/number`. The adapter `french` is the public model
    `ENDPOINT:french`. Aliases are resolved now. Adapters are added and removed without a restart of the model."""
    smoke: dict[str, Any] | None = None
    """Body of a request, as a client sends it, that the version must answer before it gets traffic. None: a default
    request for the task."""

    @model_validator(mode="after")
    def _adapters_fit_the_engine(self) -> Self:
        if self.adapters and self.compression != "none":
            raise InvalidError(
                "adapters_with_compression",
                f"compression: adapters do not fit weights compressed to {self.compression}; remove one of the two.",
            )
        if self.adapters and self.engine == "vllm" and not self.vllm.get("enable_lora"):
            raise InvalidError(
                "adapters_need_enable_lora",
                "adapters: engine vllm requires vllm.enable_lora: true (and max_lora_rank, if above 16).",
            )
        return self

    @model_validator(mode="after")
    def _options_of_shared_replicas(self) -> Self:
        for name, default in (
            ("scaling", Scaling()),
            ("resources", Resources()),
            ("direct", False),
            ("strategy", "blue_green"),
        ):
            if self.replicas == "shared" and getattr(self, name) != default:
                raise InvalidError(
                    "option_of_shared_replicas",
                    f"{name}: cannot be set for one endpoint with `replicas: shared`; remove it, set it for all shared "
                    "replicas (in the file that MAAS_SHARED names), or set replicas to own.",
                )
        return self


class ModelArgs(ServingOptions):
    """Arguments of `maas_ray.serve.model_app:build`."""

    endpoint: Name
    """Public model name."""
    version: Reference = Field(min_length=1)
    """The version, `name@alias` or `name/number`. It is resolved when the application is built."""


class SharedArgs(Spec):
    """Arguments of `maas_ray.serve.shared:build`, and the contents of the file that `MAAS_SHARED` names."""

    scaling: Scaling = Scaling()
    """Number of shared replicas, by the requests for all models. A minimum of 0 keeps no replica warm."""
    resources: Resources = Resources()
    """Resources of each replica, for all its models together."""
    max_models: int = Field(16, ge=1)
    """Models that a replica keeps loaded. The least recently used one is evicted."""
    weights_gb: float = Field(4.0, gt=0)
    """Weights that a replica keeps loaded, GB of their files. A larger model needs replicas of its own. Models that
    generate also use up to `kv_cache_gb` each."""
    max_ongoing_requests: int = Field(128, ge=1)
    """Requests that a replica works on at once, for all models. Each model also has its own limit."""
    max_queued_requests: int = Field(256, ge=1)
    """Requests that wait for a replica at each gateway. Further ones get status 429."""
    request_timeout_s: float = Field(300.0, gt=0, le=MAX_TIMEOUT_S)
    """Longest time for a replica that is removed to finish its requests, seconds."""

    @model_validator(mode="after")
    def _target_in_reach(self) -> Self:
        self.scaling.check_target(self.max_ongoing_requests)
        return self


class SharedModel(Spec):
    """Everything that a shared replica needs to load a model."""

    uri: str
    """The bundle."""
    digest: str
    """The bundle's digest."""
    name: str
    """Public model name."""
    number: str
    """The version's number."""
    kind: Literal["generate", "predict"]
    """See `maas_ray.tasks.Task`."""
    weights: int = Field(ge=0)
    """Size of its weights, bytes."""
    options: ServingOptions
    """Its options. Scaling and resources are the replica's."""

    @property
    def id(self) -> str:
        """The whole spec as one string, which is Serve's id of the model. A replica needs nothing else."""
        document = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(document, sort_keys=True, separators=(",", ":"))


class ServedModel(Spec):
    """A model application that a gateway built from a config file routes to."""

    endpoint: Name
    """Public model name."""
    version: Reference = Field(min_length=1)
    """The version, as the model application's arguments have it."""
    application: str = Field(min_length=1)
    """The Serve application that serves it."""
    replicas: Literal["own", "shared"] = "own"
    """shared: the application was built by `maas_ray.serve.shared:build`, and the model has the default options."""
    request_timeout_s: float = Field(300.0, gt=0, le=MAX_TIMEOUT_S)
    """Timeout of one request, seconds."""
    adapters: dict[Name, Reference] = {}
    """LoRA adapters by name, as in a `DeploySpec`."""


class GatewayArgs(Spec):
    """Arguments of `maas_ray.serve.gateway:build`; and without models and gRPC, the contents of the file that
    `MAAS_GATEWAY` names.
    """

    models: tuple[ServedModel, ...] = ()
    """The models and their public names."""
    body_limit_mb: float = Field(16.0, gt=0)
    """Largest request body, MB (10⁶ bytes). A larger one gets status 413."""
    text_body_limit_mb: float = Field(4.0, gt=0)
    """The same for completions and chats."""
    bodies_mb: float | None = Field(None, gt=0)
    """Large request bodies, and messages over gRPC, that a gateway replica has in memory at the same time, MB. Others
    get status 429, or RESOURCE_EXHAUSTED. None: eight times `body_limit_mb`."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages whose scripts may call the gateway, such as `https://app.example.com`. `*`: every page."""
    min_replicas: int | None = Field(None, ge=1)
    """Minimum of gateway replicas. Serve spreads them over the nodes. None: 2 on a cluster of several nodes, else 1."""
    max_replicas: int = Field(4, ge=1)
    """Maximum of gateway replicas."""
    grpc_host: str | None = None
    """Address that gRPC listens on. None: MAAS_HTTP_HOST."""
    grpc_port: int | None = Field(None, ge=0, le=65535)
    """Port of gRPC, on every machine with a gateway replica. 0: gRPC is off. None: MAAS_GRPC_PORT."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bodies_mb is not None and self.bodies_mb < self.body_limit_mb:
            raise InvalidError(
                "bodies_below_limit",
                f"bodies_mb ({self.bodies_mb:g}) is below body_limit_mb ({self.body_limit_mb:g}), so the largest body "
                "would never be accepted; raise bodies_mb.",
            )
        for origin in self.cors_origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}"):
                raise InvalidError(
                    "invalid_origin",
                    f"cors_origins: {origin!r} is not an origin; write it as browsers send it, such as "
                    "https://app.example.com, without a path, or write '*'.",
                )
        if (self.min_replicas or 1) > self.max_replicas:
            raise InvalidError(
                "bounds_crossed",
                f"min_replicas: {self.min_replicas} is above max_replicas, {self.max_replicas}; change one of them.",
            )
        return self

    def own_options(self) -> dict[str, Any]:
        """The options that the file of `MAAS_GATEWAY` may have."""
        return self.model_dump(mode="json", exclude={"models", "grpc_host", "grpc_port"})

    def http_options(self) -> dict[str, Any]:
        """Options of `create_app`, in JSON's types."""
        return {
            "body_limit": int(self.body_limit_mb * 1e6),
            "text_body_limit": int(self.text_body_limit_mb * 1e6),
            "budget": self.bodies_mb and int(self.bodies_mb * 1e6),
            "origins": list(self.cors_origins),
        }

    def for_nodes(self, nodes: int) -> Self:
        """The same with the default minimum of replicas for a cluster of so many nodes."""
        default = min(2 if nodes > 1 else 1, self.max_replicas)
        return self.model_copy(update={"min_replicas": self.min_replicas or default})
