"""Model versions in MLflow's registry, where MLflow's own client and UI see them too.

Names, numbers and aliases are MLflow's own. Everything that MLflow has no field for is in tags: `maas.digest` (the
bundle's), `maas.task`, `maas.metrics` and `maas.lineage` (JSON). A version is written in one transaction together with
its tags, so it is whole or does not exist. Registering is idempotent: a bundle that is registered already gives its
version. Each evaluation is in a tag for its dataset and split, `maas.evaluation/<dataset>/<split>`, so that it never
overwrites another one.
"""

import json
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from maas_ray.database.engine import Database
from maas_ray.database.leases import Lease, this_process
from maas_ray.errors import ConflictError, NotFoundError
from maas_ray.registry.bundle import Bundle, Lineage, open_bundle
from maas_ray.registry.client import is_server, mlflow_client
from maas_ray.registry.references import check_alias, parse_reference
from maas_ray.settings import Settings
from maas_ray.spec import Spec

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG_DIGEST = "maas.digest"
TAG_TASK = "maas.task"
TAG_METRICS = "maas.metrics"
TAG_LINEAGE = "maas.lineage"
TAG_EVALUATION = "maas.evaluation/"
TAG_DUE = "maas.alias_due"
TAG_URI = "maas.uri"
_BUNDLE_SCHEME = "maas-bundle"
_REGISTER_SECONDS = 120.0


class Evaluation(Spec):
    """The metrics of a version's last evaluation on a split of a dataset; the whole report is in storage."""

    dataset: str
    """Name of the dataset."""
    fingerprint: str
    """Fingerprint of the dataset."""
    split: str
    """The split."""
    rows: int
    """Its rows."""
    metrics: dict[str, float]
    """By name."""
    uri: str
    """URI of the report and its plots."""
    created: datetime
    """When it was measured."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. Only its aliases and its evaluations change."""

    name: str
    number: int
    uri: str
    digest: str
    task: str
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    lineage: Lineage
    created: datetime
    due: str = ""
    """Alias that its training asked for, until it is decided whether the alias moves. Empty: it is decided."""
    evaluations: tuple[Evaluation, ...] = ()
    """The newest evaluation on each dataset and split; newest first."""

    @property
    def reference(self) -> str:
        """`name/number`, which always means this version."""
        return f"{self.name}/{self.number}"

    def open(self) -> Bundle:
        """The version's bundle, checked to be the one that was registered.

        Raises:
            ConflictError: its URI holds another bundle now.
        """
        bundle = open_bundle(self.uri)
        if bundle.digest != self.digest:
            raise ConflictError(
                f"{self.reference}: the bundle at {self.uri} is not the one that was registered.",
                code="bundle_differs",
            )
        return bundle


class Registry:
    """The registry that the settings name. Cheap to make; connects at the first call."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: MlflowClient | None = None

    @property
    def client(self) -> "MlflowClient":
        """MLflow's own client, for the same registry."""
        if self._client is None:
            self._client = mlflow_client(self._settings)
        return self._client

    def register(self, bundle: Bundle, *, run_id: str | None = None, alias: str | None = None) -> ModelVersion:
        """Register a bundle as the next version of its model; the same bundle again is the same version.

        Args:
            bundle: the bundle.
            run_id: MLflow's id of the run that made it.
            alias: alias that the version is to have, see `ModelVersion.due`.
        """
        with self._writing(bundle.meta.name) as lease:
            self._create_model(bundle.meta.name)
            if found := self._with_digest(bundle):
                return found[-1]
            lease.check()
            self._create_version(bundle, run_id, alias)
            first, *rest = reversed(self._with_digest(bundle))
            for version in rest:  # an answer of MLflow's server was lost, and its client asked again
                self.client.delete_model_version(version.name, str(version.number))
            return first

    def prove(self, name: str, uri: str) -> None:
        """Prove that a version can be registered, with a model of another name that is deleted again.

        Only a server may refuse it: it does not accept every URI of a bundle, and may allow only some users to write.

        Args:
            name: the model that is to be registered.
            uri: a URI below which its bundle will lie.

        Raises:
            ConflictError: MLflow refuses it.
        """
        from mlflow.exceptions import MlflowException

        if not is_server(self._settings.mlflow):
            return
        trial = f"{name[:100]}-trial-{uuid.uuid4().hex[:12]}"
        try:
            self.client.create_registered_model(trial)
            try:
                self._create_sourced(trial, f"{uri}/{'0' * 16}", None, {})
            finally:
                self.client.delete_registered_model(trial)
        except MlflowException as error:
            raise ConflictError(
                f"MLflow at {self._settings.mlflow} would refuse to register a version of {name}: {error.message}. "
                "Nothing was trained.",
                code="registration_refused",
            ) from error

    def _writing(self, name: str) -> "AbstractContextManager[Lease]":
        """Let one process at a time create versions of a model: MLflow has no unique key but the number."""
        lease = Lease(Database(self._settings.database), f"register/{name}", this_process())
        return lease.held(wait_seconds=_REGISTER_SECONDS)

    def _create_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _with_digest(self, bundle: Bundle) -> list[ModelVersion]:
        """The versions that a bundle is registered as, newest first."""
        return [version for version in self.versions(bundle.meta.name) if version.digest == bundle.digest]

    def _create_version(self, bundle: Bundle, run_id: str | None, alias: str | None) -> None:
        meta = bundle.meta
        tags = {
            TAG_DIGEST: bundle.digest,
            TAG_TASK: meta.task,
            TAG_METRICS: json.dumps(meta.metrics),
            TAG_LINEAGE: json.dumps(meta.lineage.document()),
        }
        self._create_sourced(meta.name, bundle.uri, run_id, tags | ({TAG_DUE: alias} if alias else {}))

    def _create_sourced(self, name: str, uri: str, run_id: str | None, tags: dict[str, str]) -> None:
        """Create a version whose source is a URI.

        A server refuses local paths as sources, and some schemes, because it might be made to read them. The source is
        then a name of the bundle that nothing opens, and the URI is in a tag.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_model_version(name, source=uri, run_id=run_id, tags=tags)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE" or not is_server(self._settings.mlflow):
                raise
            source = f"{_BUNDLE_SCHEME}:/{name}/{uri.rpartition('/')[2]}"
            self.client.create_model_version(name, source=source, run_id=run_id, tags=tags | {TAG_URI: uri})

    def models(self) -> dict[str, list[ModelVersion]]:
        """Every model of this platform with its versions, newest first. Models without any are not its own."""
        names: list[str] = []
        token: str | None = None
        while token != "":
            page = self.client.search_registered_models(max_results=100, page_token=token)
            names += [model.name for model in page]
            token = page.token or ""
        versions = {name: self.versions(name) for name in sorted(names)}
        return {name: listed for name, listed in versions.items() if listed}

    def versions(self, name: str) -> list[ModelVersion]:
        """A model's versions that this platform registered, newest first."""
        entries: list[Any] = []
        token: str | None = None
        while token != "":
            page = self.client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
            entries += page
            token = page.token or ""
        aliases = self._aliases(name)
        versions = [_version(entry, aliases) for entry in entries if TAG_DIGEST in entry.tags]
        return sorted(versions, key=lambda version: -version.number)

    def resolve(self, reference: str) -> ModelVersion:
        """The version that `name@alias`, `name/number` or `name` (the newest) means.

        Raises:
            SpecError: the reference is not of that form.
            NotFoundError: it does not exist. The message lists those that do.
        """
        name, alias, number = parse_reference(reference)
        versions = self.versions(name) if self._exists(name) else []
        if not versions:
            known = ", ".join(self.models()) or "none"
            raise NotFoundError(f"model {name!r} does not exist; there are: {known}.", code="model_not_found")
        for version in versions:
            if alias is None and number is None:
                return version
            if alias in version.aliases or version.number == number:
                return version
        if alias is not None:
            known = ", ".join(sorted({a for v in versions for a in v.aliases})) or "none"
            raise NotFoundError(f"{name} has no alias {alias!r}; it has: {known}.", code="alias_not_found")
        known = ", ".join(str(version.number) for version in versions)
        raise NotFoundError(f"{name} has no version {number}; it has: {known}.", code="version_not_found")

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Point an alias at a version; it no longer points at any other.

        Raises:
            SpecError: the alias is reserved, or is not a name.
        """
        check_alias(alias)
        self.client.set_registered_model_alias(version.name, alias, str(version.number))

    def settle(self, version: ModelVersion) -> None:
        """Record that it is decided whether the alias that a version was registered for moves to it."""
        if version.due:
            self.client.delete_model_version_tag(version.name, str(version.number), TAG_DUE)

    def record(self, version: ModelVersion, evaluation: Evaluation) -> None:
        """Record an evaluation of a version; it replaces an earlier one on the same dataset and split."""
        key = f"{TAG_EVALUATION}{evaluation.dataset}/{evaluation.split}"
        self.client.set_model_version_tag(version.name, str(version.number), key, json.dumps(evaluation.document()))

    def _exists(self, name: str) -> bool:
        return bool(self.client.search_registered_models(f"name = '{name}'", max_results=1))

    def _aliases(self, name: str) -> dict[int, tuple[str, ...]]:
        models = self.client.search_registered_models(f"name = '{name}'", max_results=1)
        aliases: dict[int, tuple[str, ...]] = {}
        for alias, number in sorted((models[0].aliases if models else {}).items()):
            aliases[int(number)] = (*aliases.get(int(number), ()), alias)
        return aliases


def _version(entry: Any, aliases: dict[int, tuple[str, ...]]) -> ModelVersion:
    number = int(entry.version)
    evaluations = [
        Evaluation.parse(json.loads(value), source=f"{entry.name}/{number}: {key}")
        for key, value in entry.tags.items()
        if key.startswith(TAG_EVALUATION)
    ]
    return ModelVersion(
        name=entry.name,
        number=number,
        uri=entry.tags.get(TAG_URI, entry.source),
        digest=entry.tags[TAG_DIGEST],
        task=entry.tags.get(TAG_TASK, ""),
        aliases=aliases.get(number, ()),
        metrics=json.loads(entry.tags.get(TAG_METRICS, "{}")),
        lineage=Lineage.parse(json.loads(entry.tags.get(TAG_LINEAGE, "{}")), source=f"{entry.name}/{number}"),
        due=entry.tags.get(TAG_DUE, ""),
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, tz=UTC),
        evaluations=tuple(sorted(evaluations, key=lambda evaluation: evaluation.created, reverse=True)),
    )
