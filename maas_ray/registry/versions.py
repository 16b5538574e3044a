"""Model versions, kept in MLflow's registry: MLflow's own client and UI see the same things.

Names, numbers and aliases are MLflow's own. What MLflow has no field for stands in tags: `maas.digest`
(the bundle's), `maas.task`, `maas.metrics` and `maas.lineage` (JSON). A version is written in one
transaction together with its tags, so there is none or a whole one; registering a bundle that a version
already stands for gives that version. What it is measured at later stands in a tag for each dataset and
split, `maas.evaluation/<dataset>/<split>`, so that no evaluation overwrites another one's.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from maas_ray.errors import ConflictError, NotFoundError, SpecError
from maas_ray.registry.bundle import Bundle, Lineage, open_bundle
from maas_ray.settings import Settings
from maas_ray.spec import Name, Spec

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG_DIGEST = "maas.digest"
TAG_TASK = "maas.task"
TAG_METRICS = "maas.metrics"
TAG_LINEAGE = "maas.lineage"
TAG_EVALUATION = "maas.evaluation/"


def _no_version(alias: str) -> str:
    if alias == "latest" or (alias[:1] == "v" and alias[1:].isdigit()):
        raise ValueError(f"{alias!r} means a version by itself, in MLflow too; take a name such as champion")
    return alias


Alias = Annotated[Name, AfterValidator(_no_version)]
"""A name for a version that moves, such as `champion`."""


class Evaluation(Spec):
    """What a version was last measured at on a split of a dataset; the whole report lies in storage."""

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
    """Where the report and its plots lie."""
    created: datetime
    """When it was measured."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered version; immutable but for its aliases and its evaluations."""

    name: str
    number: int
    uri: str
    digest: str
    task: str
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    lineage: Lineage
    created: datetime
    evaluations: tuple[Evaluation, ...] = ()
    """The newest one of each dataset and split; newest first."""

    @property
    def reference(self) -> str:
        """`name/number`, which always means this version."""
        return f"{self.name}/{self.number}"

    def open(self) -> Bundle:
        """The version's bundle, checked to be the very one that was registered.

        Raises:
            ConflictError: other bytes lie at its URI now.
        """
        bundle = open_bundle(self.uri)
        if bundle.digest != self.digest:
            raise ConflictError(f"{self.reference}: the bundle at {self.uri} is not the one that was registered.")
        return bundle


class Registry:
    """The registry that the settings name. Cheap to make; connects at the first call."""

    def __init__(self, settings: Settings) -> None:
        self._uri = settings.mlflow
        self._client: MlflowClient | None = None

    @property
    def client(self) -> "MlflowClient":
        """MLflow's own client, for the same registry."""
        if self._client is None:
            self._client = mlflow_client(self._uri)
        return self._client

    def register(self, bundle: Bundle, *, run_id: str | None = None) -> ModelVersion:
        """Register a bundle as the next version of its model; the same bundle again is the same version."""
        from mlflow.exceptions import MlflowException

        meta = bundle.meta
        try:
            self.client.create_registered_model(meta.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in self.versions(meta.name):
            if version.digest == bundle.digest:
                return version
        created = self.client.create_model_version(
            meta.name,
            source=bundle.uri,
            run_id=run_id,
            tags={
                TAG_DIGEST: bundle.digest,
                TAG_TASK: meta.task,
                TAG_METRICS: json.dumps(meta.metrics),
                TAG_LINEAGE: json.dumps(meta.lineage.document()),
            },
        )
        return self.resolve(f"{meta.name}/{created.version}")

    def models(self) -> dict[str, list[ModelVersion]]:
        """Every registered model with its versions, newest first."""
        names: list[str] = []
        token: str | None = None
        while token != "":
            page = self.client.search_registered_models(max_results=100, page_token=token)
            names += [model.name for model in page]
            token = page.token or ""
        return {name: self.versions(name) for name in sorted(names)}

    def versions(self, name: str) -> list[ModelVersion]:
        """A model's versions, newest first; those that this platform did not make are left out."""
        found: list[Any] = []
        token: str | None = None
        while token != "":
            page = self.client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
            found += page
            token = page.token or ""
        aliases = self._aliases(name)
        versions = [_version(found_one, aliases) for found_one in found if TAG_DIGEST in found_one.tags]
        return sorted(versions, key=lambda version: -version.number)

    def resolve(self, reference: str) -> ModelVersion:
        """The version that `name@alias`, `name/number` or `name` (the newest) means.

        Raises:
            SpecError: the reference is not of that form.
            NotFoundError: there is none; says what there is.
        """
        name, alias, number = parse_reference(reference)
        versions = self.versions(name) if self._exists(name) else []
        if not versions:
            known = ", ".join(self.models()) or "none"
            raise NotFoundError(f"there is no model {name!r}; there are: {known}.")
        for version in versions:
            if alias is None and number is None:
                return version
            if alias in version.aliases or version.number == number:
                return version
        if alias is not None:
            known = ", ".join(sorted({a for v in versions for a in v.aliases})) or "none"
            raise NotFoundError(f"{name} has no alias {alias!r}; it has: {known}.")
        raise NotFoundError(f"{name} has no version {number}; it has: {', '.join(str(v.number) for v in versions)}.")

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Point an alias at a version, taking it from any other.

        Raises:
            SpecError: the registry takes no such alias.
        """
        check_alias(alias)
        self.client.set_registered_model_alias(version.name, alias, str(version.number))

    def record(self, version: ModelVersion, evaluation: Evaluation) -> None:
        """Keep what a version was measured at; it takes the place of an earlier one on the same dataset and split."""
        key = f"{TAG_EVALUATION}{evaluation.dataset}/{evaluation.split}"
        self.client.set_model_version_tag(version.name, str(version.number), key, json.dumps(evaluation.document()))

    def _exists(self, name: str) -> bool:
        return bool(self.client.search_registered_models(f"name = '{name}'", max_results=1))

    def _aliases(self, name: str) -> dict[int, tuple[str, ...]]:
        found = self.client.search_registered_models(f"name = '{name}'", max_results=1)
        aliases: dict[int, tuple[str, ...]] = {}
        for alias, number in sorted((found[0].aliases if found else {}).items()):
            aliases[int(number)] = (*aliases.get(int(number), ()), alias)
        return aliases


def mlflow_client(uri: str) -> "MlflowClient":
    """MLflow's client for tracking and registry at one URI, without its chatter."""
    import logging
    import os
    from pathlib import Path

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def parse_reference(reference: str) -> tuple[str, str | None, int | None]:
    """`name@alias`, `name/number` or `name` as (name, alias, number).

    Raises:
        SpecError: it is none of these.
    """
    name, at, alias = reference.partition("@")
    if at and name and alias:
        return _name(name, reference), _name(alias, reference), None
    name, slash, number = reference.partition("/")
    if slash and number.isdigit():
        return _name(name, reference), None, int(number)
    return _name(reference, reference), None, None


def check_alias(alias: str) -> str:
    """An alias that can be told from a version's number.

    Raises:
        SpecError: it cannot, or is no name.
    """
    try:
        return TypeAdapter(Alias).validate_python(alias)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ").replace("String should", "must")
        raise SpecError(f"alias {alias!r}", [message]) from None


def _name(name: str, reference: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise SpecError(
            "version", [f"{reference!r}: write `name@alias` or `name/number`; names hold letters, digits, . _ -"]
        ) from None


def _version(found: Any, aliases: dict[int, tuple[str, ...]]) -> ModelVersion:
    number = int(found.version)
    evaluations = [
        Evaluation.parse(json.loads(value), source=f"{found.name}/{number}: {key}")
        for key, value in found.tags.items()
        if key.startswith(TAG_EVALUATION)
    ]
    return ModelVersion(
        name=found.name,
        number=number,
        uri=found.source,
        digest=found.tags[TAG_DIGEST],
        task=found.tags.get(TAG_TASK, ""),
        aliases=aliases.get(number, ()),
        metrics=json.loads(found.tags.get(TAG_METRICS, "{}")),
        lineage=Lineage.parse(json.loads(found.tags.get(TAG_LINEAGE, "{}")), source=f"{found.name}/{number}"),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, tz=UTC),
        evaluations=tuple(sorted(evaluations, key=lambda one: one.created, reverse=True)),
    )
