"""The model bundle: an immutable directory from which any tool can load the model.

    config.json  model.safetensors  tokenizer.json  …   Hugging Face layout, for other tools too
    task.json                                           the fitted task: features and signature
    README.md                                           the model card
    manifest.json                                       every file's sha256; under `meta`, the lineage

Its URI is `<storage>/models/<name>/<digest>`. Weights are safetensors; nothing in a bundle is ever unpickled.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maas_ray import storage
from maas_ray.errors import CorruptError
from maas_ray.settings import Settings
from maas_ray.spec import Name, Spec
from maas_ray.storage import Artifact
from maas_ray.storage.disk_cache import Held, node_cache
from maas_ray.tasks import Task, load_task
from maas_ray.user_code.trust import check_carried

KIND = "bundle"
WEIGHTS_SUFFIX = ".safetensors"
WEIGHT_SUFFIXES = (WEIGHTS_SUFFIX, ".onnx", ".onnx.data")
"""Suffixes of files that hold nothing but weights. Every other file says what the model does."""
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class Lineage(Spec):
    """The origin of a model."""

    dataset: str = ""
    """Name of the dataset."""
    dataset_fingerprint: str = ""
    """Fingerprint of the dataset."""
    dataset_uri: str = ""
    """URI of the dataset when it was trained on."""
    measured_rows: dict[str, int] = {}
    """Rows of each split, the first ones, that the training measured its metrics on."""
    run: str = ""
    """Name of the training run."""
    run_id: str = ""
    """MLflow's id of the run."""
    step: int | None = None
    """Optimizer steps of the checkpoint that was exported. None: not recorded, or not trained."""
    code_revision: str = ""
    """Git revision of the working directory, with `+dirty` if it had changes. Empty: not a checkout."""
    packages: dict[str, str] = {}
    """Versions of the packages that made it."""
    spec: dict[str, object] = {}
    """The resolved spec of the verb that made it."""
    deepspeed: dict[str, object] = {}
    """The DeepSpeed configuration as it ran, `"auto"` values filled."""
    parent: str = ""
    """The version it was made from, `name/number`. Empty: made from data."""


class BundleMeta(Spec):
    """`meta` in a bundle's manifest."""

    name: Name
    """The registered model's name."""
    task: str
    """The task's type."""
    metrics: dict[str, float]
    """Metrics by `split/metric`, such as `validation/loss`."""
    lineage: Lineage
    """Its origin."""


@dataclass(frozen=True)
class Bundle:
    """A committed bundle."""

    artifact: Artifact

    @property
    def uri(self) -> str:
        return self.artifact.uri

    @property
    def digest(self) -> str:
        return self.artifact.digest

    @property
    def meta(self) -> BundleMeta:
        return BundleMeta.parse(self.artifact.meta, source=self.uri)

    def hold(self, cache: Path | None = None) -> Held:
        """The bundle in a local directory, each byte verified; one copy a node, which stays while it is held.

        Args:
            cache: where copies are kept. None: `MAAS_HOME/bundles`.
        """
        cache = cache or Path(Settings.from_environment(strict=False).home) / "bundles"
        return node_cache(cache).get(self.digest, self.artifact.fetch)

    def fetch(self, cache: Path | None = None) -> Path:
        """See `hold`; the copy stays until this process ends."""
        return self.hold(cache).for_ever()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by name; only the heads of the files are read, and are not verified.

        Raises:
            CorruptError: a file is not a safetensors file.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for entry in self.artifact.files:
            if entry.path.endswith(WEIGHTS_SUFFIX):
                with storage.open_file(storage.join(self.uri, entry.path)) as file:
                    size = int.from_bytes(file.read(8), "little")
                    try:
                        head = json.loads(file.read(size) if size < entry.size else b"")
                        shapes |= {name: tuple(head[name]["shape"]) for name in head if name != "__metadata__"}
                    except (ValueError, KeyError, TypeError) as error:
                        raise CorruptError(
                            f"{self.uri}: {entry.path} is not a safetensors file: {error}", code="weights_unreadable"
                        ) from error
        return shapes

    def load_task(self, directory: Path) -> Task:
        """The fitted task, from a fetched copy.

        Raises:
            UntrustedCodeError: the bundle brings code, for its task or its network, that may not run here.
        """
        check_carried(directory, f"the model at {self.uri}")
        return load_task(directory)


def bundle_home(settings: Settings, name: str) -> str:
    """The directory of all bundles of a model."""
    return storage.join(settings.storage, "models", name)


def open_bundle(uri: str) -> Bundle:
    """A committed bundle.

    Raises:
        NotFoundError: no bundle is committed there.
        CorruptError: it is damaged, or holds files that could run code when loaded.
    """
    artifact = storage.open_artifact(uri, KIND)
    unsafe = [entry.path for entry in artifact.files if entry.path.endswith(UNSAFE_SUFFIXES)]
    if unsafe or not any(entry.path.endswith(WEIGHTS_SUFFIX) for entry in artifact.files):
        content = f"holds {unsafe}" if unsafe else "does not hold weights"
        code = "bundle_unsafe" if unsafe else "weights_missing"
        raise CorruptError(f"{uri} {content}; a bundle's weights must be safetensors files.", code=code)
    return Bundle(artifact)


def publish_bundle(
    settings: Settings,
    directory: Path,
    meta: BundleMeta,
    retry_seconds: float = 0.0,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Publish a local directory as a bundle, like `storage.publish`. The same content is the same bundle."""
    home = bundle_home(settings, meta.name)
    return Bundle(storage.publish(directory, home, KIND, meta.document(), retry_seconds, say))
