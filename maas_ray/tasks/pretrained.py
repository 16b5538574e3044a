"""Networks that Transformers builds. A bundle holds their configuration in Transformers' own files."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from maas_ray.errors import DataError
from maas_ray.tasks.network import CONFIG_FILE, NetworkSpec, file_digests
from maas_ray.tasks.pretrained_weights import check_format, check_weights, quiet, stored_apart
from maas_ray.tasks.task import Task

if TYPE_CHECKING:
    import torch


_CONFIG_FILES = (CONFIG_FILE, "generation_config.json")
"""Files beside the weights that Transformers reads when it builds a model."""


class TransformersNetwork(NetworkSpec):
    """A network that Transformers builds. Its `config.json` lies in the bundle, and its Auto class loads the bundle."""

    of_transformers: ClassVar[bool] = True

    gradient_checkpointing: bool = False
    """Save memory: keep each layer's input alone in the forward pass, and recompute the rest in the backward pass."""

    def trainable(self, model: Any) -> "torch.nn.Module":
        """The model with these options applied."""
        if self.gradient_checkpointing:
            model.activation_checkpointing_enable()  # without effect in eval mode
        return cast("torch.nn.Module", model)

    def write_config(self, module: Any, task: Any, directory: Path) -> None:
        module.config.architectures = [type(module).__name__]
        module.config.save_pretrained(directory)
        if module.can_generate():
            module.generation_config.save_pretrained(directory)
        task.write_companions(module.config, directory)


class Pretrained(TransformersNetwork):
    """Any Transformers model that fits the task, in a local directory, trained further in full.

    A head that the directory lacks, or has for other labels, is initialised at random.
    """

    learning_rate: ClassVar[float] = 2e-5
    """As in Hugging Face's examples of fine-tuning: a rate for random weights would ruin trained ones."""

    type: Literal["pretrained"] = "pretrained"
    """Which network."""
    path: str
    """Local directory in Hugging Face layout: `config.json` and `*.safetensors`."""

    def identity(self) -> dict[str, Any]:
        """The fields, with the digests of configuration and weights in place of the directory."""
        directory = model_directory(self.path, "network.path")
        weights = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
        files = [*(directory / name for name in _CONFIG_FILES), *sorted(directory.glob("*.index.json")), *weights]
        document = super().identity() | {"files": file_digests({path.name: path for path in files if path.is_file()})}
        return {name: value for name, value in document.items() if name != "path"}

    def weight_names(self) -> Iterator[str]:
        """Names of the tensors in the directory's safetensors files; `check` reports files that cannot be read."""
        from safetensors import SafetensorError, safe_open

        for path in sorted(model_directory(self.path, "network.path").glob("*.safetensors")):
            with suppress(SafetensorError, OSError), safe_open(path, framework="numpy") as weights:
                yield from weights.keys()

    def build(self, task: Task) -> "torch.nn.Module":
        model, _ = self._loaded(task)
        return self.trainable(model)

    def check(self, task: Task) -> list[str]:
        """Load it on the meta device, which takes no memory; weights that are new or not used are in the lines."""
        with quiet():
            model, report = self._loaded(task, device_map="meta")
        return check_weights(model, report, Path(self.path).expanduser(), labelled=bool(task.config_fields()))

    def skeleton(self, task: Task) -> "torch.nn.Module":
        import torch
        from transformers import GenerationConfig

        directory, config = self._config(task)
        with torch.device("meta"):
            model = self._auto(task).from_config(config, dtype=torch.float32)
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
        return cast("torch.nn.Module", model)

    def _loaded(self, task: Task, **options: Any) -> tuple[Any, dict[str, Any]]:
        """The model, and Transformers' report of weights that it could not load."""
        import torch

        directory, config = self._config(task)
        try:
            model, report = self._auto(task).from_pretrained(
                directory,
                config=config,
                local_files_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=bool(task.config_fields()),
                output_loading_info=True,
                **options,
            )
        except (OSError, RuntimeError, ValueError) as error:
            if type(error) not in (OSError, RuntimeError, ValueError):
                raise  # a lack of memory, for one
            raise DataError(
                f"network.path: Transformers cannot load the model in {directory}: {error}", code="model_unreadable"
            ) from error
        return model, report

    def _config(self, task: Task) -> tuple[Path, Any]:
        from transformers import AutoConfig

        directory = model_directory(self.path, "network.path")
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        check_format(config, directory)
        task.check_pretrained(config, directory)
        for name, value in task.config_fields().items():
            setattr(config, name, value)
        # Transformers looks at the values too, but not under ZeRO 3, and it leaves the configuration as it is.
        if getattr(config, "tie_word_embeddings", False) and stored_apart(directory, self._auto(task), config):
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        return directory, config

    @staticmethod
    def _auto(task: Task) -> Any:
        import transformers

        return getattr(transformers, task.auto_model)


def model_directory(path: str, field: str = "processor") -> Path:
    """The local directory of a Transformers model that a field of a spec names.

    Raises:
        DataError: the directory does not hold a model.
    """
    directory = Path(path).expanduser()
    if not (directory / CONFIG_FILE).is_file():
        raise DataError(
            f"{field}: {directory} does not hold {CONFIG_FILE}; give the directory of a Transformers model.",
            code="file_missing",
        )
    return directory


def check_built_whole(config: Any) -> None:
    """Return unless a model is to be built in ZeRO 3 shards, which Transformers fails to do for vision and speech.

    Raises:
        DataError: ZeRO 3 is on.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        raise DataError(
            f"network.path: Transformers cannot build a {config.model_type} in shards, which ZeRO 3 needs; use stage 2 "
            "or lower.",
            code="zero_3_unsupported",
        )


def module_of(model: Any) -> Any:
    """The network inside a wrapper of DeepSpeed or `OnDevice`, or the network itself."""
    return getattr(model, "module", model)


def as_weights(model: Any, values: "torch.Tensor") -> "torch.Tensor":
    """Values in the precision of a network's weights. DeepSpeed chooses the precision, but does not cast inputs."""
    return values.to(next(module_of(model).parameters()).dtype)
