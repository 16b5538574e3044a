"""`maas`: the verbs in a terminal, and the way the scripts in `jobs/` call them.

Every error that was raised on purpose is shown as its message alone, on standard error: exit status 2 for
a spec, an override or a setting that is wrong, 1 for all else, 130 for Ctrl-C, 143 for SIGTERM. Nothing
heavy is imported before a command runs.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from maas_ray.settings import Settings

_VERBOSE = "MAAS_VERBOSE"
_MODEL, _LOOK, _CLUSTER = "From data to an API", "What there is", "The cluster"


def _set_verbose(value: bool) -> bool:
    if value:
        os.environ[_VERBOSE] = "1"
    return value


def _show_version(value: bool) -> None:
    if value:
        from maas_ray.version import __version__

        typer.echo(f"maas_ray {__version__}")
        raise typer.Exit


SpecFile = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The spec.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Lay a value over the spec; may be given again.", show_default=False),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show Ray's own log and tracebacks.", callback=_set_verbose)
]
Gates = Annotated[
    list[str] | None,
    typer.Option(
        "--if",
        metavar="GATE",
        help="Only if this holds, such as 'f1 >= champion - 0.005'; may be given again.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _maas(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Model-as-a-Service on Ray: from data to a versioned, autoscaling API.

    A Ray cluster is started on this machine when there is none; RAY_ADDRESS
    names another. Things are kept under ~/.maas; MAAS_STORAGE, MAAS_MLFLOW and
    MAAS_DATABASE name other places.

    The usual way:
      maas prepare prepare.yaml      raw data → a prepared dataset
      maas train train.yaml          a dataset → a registered version of a model
      maas deploy NAME@champion      a version → an API
      maas status                    what runs
    """


# --- the verbs -------------------------------------------------------------------------------------


@app.command(rich_help_panel=_MODEL)
def prepare(
    spec: SpecFile,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Prepare all files anew where the dataset could grow.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Turn raw data into a prepared dataset.

    Reads text, CSV, JSONL, Parquet, Arrow, tar shards, SQL, images or sound,
    on disk or in an object store; cleans, removes duplicates, splits, fits the
    task's features on the training split, and writes shards. What was left out
    is counted by reason; `maas data NAME` shows it. The same spec and input
    are recognised and reused; where files were added, they alone are read, and
    no row of before moves. Interrupted, it goes on when run again.

    Examples:
      maas prepare jobs/specs/stdlib-prepare.yaml
      maas prepare prepare.yaml --set splits.test=0.1 --set task.tokenizer.vocab_size=4096
    """
    from maas_ray import PrepareSpec
    from maas_ray import prepare as verb

    verb(PrepareSpec.from_yaml(spec, overrides or ()), fresh=fresh)


@app.command(rich_help_panel=_MODEL)
def train(spec: SpecFile, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Train on a dataset and register the result as one version.

    Runs DeepSpeed on the cluster's workers, saves checkpoints, and ends with
    a bundle in Hugging Face layout and a registered version with metrics and
    lineage. Run again after a crash, it goes on from the last checkpoint.

    Examples:
      maas train train.yaml
      maas train train.yaml --set epochs=3 --set workers=4 --set alias=candidate
    """
    from maas_ray import TrainSpec
    from maas_ray import train as verb

    verb(TrainSpec.from_yaml(spec, overrides or ()))


@app.command(rich_help_panel=_MODEL)
def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="SPEC.yaml|NAME@ALIAS|NAME/VERSION", help="What to measure.", show_default=False)
    ],
    dataset: Annotated[
        str | None, typer.Argument(help="Dataset. Default: the one it was trained on.", show_default=False)
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Split. Default: test.", show_default=False)] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice", metavar="COLUMN", help="Measure each value of it too; may be given again.", show_default=False
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME/VERSION", help="Compare with it on the same rows.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure a version on a split of a dataset.

    Metrics with bootstrap confidence intervals, and tables and plots by what
    the task is: classes, confusion, calibration, residuals, loss by position.
    They are kept with the version: `maas models NAME/VERSION` shows them, and
    `maas alias --if` and `maas promote --if` go by them. Columns to slice by
    are those that the dataset was prepared to `keep`.

    Examples:
      maas evaluate stdlib-lm@champion
      maas evaluate digits/3 digits --slice scanner --against digits@champion
      maas evaluate evaluate.yaml --set version=stdlib-lm/2 --set split=validation
    """
    from maas_ray import EvaluateSpec
    from maas_ray import evaluate as verb
    from maas_ray.evaluation import report
    from maas_ray.views import evaluations as showing

    given = {"dataset": dataset, "split": split, "slices": slices, "against": against}
    laid_over = [*(f"{name}={json.dumps(value)}" for name, value in given.items() if value), *(overrides or ())]
    # What is said on the way belongs to a person, not to who reads the JSON.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        found = verb(_spec_of(EvaluateSpec, target, "evaluate", laid_over))
    if as_json:
        print(json.dumps(found.document(), indent=2, ensure_ascii=False))
    else:
        showing.show_report(*report.find(found.uri))


@app.command(rich_help_panel=_MODEL)
def predict(
    target: Annotated[
        str, typer.Argument(metavar="NAME@ALIAS|NAME/VERSION|SPEC.yaml", help="What answers.", show_default=False)
    ],
    source: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="File, directory or glob.", show_default=False)
    ] = None,
    output: Annotated[
        str | None, typer.Argument(metavar="OUTPUT", help="Directory for the answers.", show_default=False)
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="The input's. Default: by the files' names.", show_default=False)
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Columns to keep. Default: numbers and short strings.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Answer every row of files: Ray Data in, Parquet out.

    Columns of the input are named as the fields of a request; labels need not
    be there. Each row of the output has the answer in the task's own words,
    where the row stood (path, position), and the columns that were kept. Rows
    that cannot be answered lie under OUTPUT/quarantine with their reason. Run
    again after a crash, it goes on; what is finished is not repeated.

    Examples:
      maas predict digits@champion scans/ answers/
      maas predict notes-lm/3 prompts.jsonl s3://bucket/answers --keep id
      maas predict predict.yaml
    """
    from maas_ray import PredictSpec
    from maas_ray import predict as verb

    laid_over = list(overrides or ())
    if source is not None:
        named = json.dumps({"format": form, "path": source} if form else source)
        laid_over = [f"input={named}", *([f"output={json.dumps(output)}"] if output else []), *laid_over]
    elif form is not None:
        raise typer.BadParameter("is the format of INPUT; in a spec it stands at `input.format`", param_hint="--format")
    if keep is not None:
        laid_over.append(f"keep={json.dumps([name for name in keep.split(',') if name])}")
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        verb(PredictSpec.from_yaml(target, laid_over))
    else:
        laid_over = [f"version={json.dumps(target)}", *laid_over]
        verb(PredictSpec.from_text("", source=f"maas predict {target}", overrides=laid_over))


@app.command(rich_help_panel=_MODEL)
def deploy(
    target: Annotated[
        str, typer.Argument(metavar="SPEC.yaml|NAME@ALIAS|NAME/VERSION", help="What to deploy.", show_default=False)
    ],
    endpoint: Annotated[
        str | None, typer.Option(metavar="NAME", help="Public name. Default: the model's.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Bring a version up behind a public name, autoscaling.

    It answers /v1/models/NAME/predict and the Open Inference Protocol under
    /v2; text generation in OpenAI's API too. The version gets traffic when it
    is up and has answered a smoke request; until then, and if it fails, what
    was served before goes on. Deployed again unchanged, nothing is done.

    With replicas=shared it is served by the platform's shared replicas, which
    load it when it is asked for; see MAAS_SHARED in the README.

    Examples:
      maas deploy stdlib-lm@champion
      maas deploy digits/3 --endpoint digits-beta --set scaling.max_replicas=2
      maas deploy digits/3 --set replicas=shared
      maas deploy deploy.yaml
    """
    from maas_ray import DeploySpec
    from maas_ray import deploy as verb
    from maas_ray.views import status

    laid_over = [*(overrides or ()), *([f"endpoint={json.dumps(endpoint)}"] if endpoint else [])]
    status.show_deployed(verb(_spec_of(DeploySpec, target, "deploy", laid_over)))


@app.command(rich_help_panel=_MODEL)
def promote(
    version: Annotated[str, typer.Argument(metavar="NAME/VERSION|NAME@ALIAS", help="The version.", show_default=False)],
    alias: Annotated[str, typer.Argument(help="Such as champion.", show_default=False)],
    gates: Gates = None,
    verbose: Verbose = False,
) -> None:
    """Point an alias at a version, and bring its endpoints along.

    Every endpoint that was deployed from the alias comes to serve the version:
    new replicas are ready before old ones go. All of them move and the alias
    after them, or nothing does.

    Examples:
      maas promote stdlib-lm/3 champion
      maas promote stdlib-lm@candidate champion --if 'perplexity <= champion * 1.01'
    """
    from maas_ray import Registry
    from maas_ray import promote as verb
    from maas_ray.terminal.lines import say
    from maas_ray.views import status

    moved = verb(version, alias, gates=gates or ())
    found = Registry(_settings()).resolve(version)
    say(f"{found.name}@{alias} is now {found.reference}" + ("" if moved else "; no endpoint was deployed from it"))
    for endpoint in moved:
        status.show_deployed(endpoint)


@app.command(rich_help_panel=_MODEL)
def rollback(
    name: Annotated[str, typer.Argument(help="The endpoint's public name.", show_default=False)],
    to: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Its number in `maas endpoints NAME`. Default: the one before.", min=1),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Serve again what an endpoint served before.

    The version and the options come from the platform's database. It is a
    change as any other: ready before it gets traffic, and a further rollback
    undoes it. Aliases stay where they are.

    Examples:
      maas rollback stdlib-lm
      maas rollback stdlib-lm --to 3
    """
    from maas_ray import rollback as verb
    from maas_ray.views import status

    status.show_deployed(verb(name, to=to))


@app.command(rich_help_panel=_MODEL)
def undeploy(
    name: Annotated[str, typer.Argument(help="The endpoint's public name.", show_default=False)],
    verbose: Verbose = False,
) -> None:
    """Take an endpoint down. Its version stays registered; its history ends.

    Requests that are being answered are finished first.

    Example:
      maas undeploy stdlib-lm
    """
    from maas_ray import undeploy as verb
    from maas_ray.terminal.lines import say

    verb(name)
    say(f"{name} is served no longer; its version stays registered")


@app.command(rich_help_panel=_MODEL)
def alias(
    name: Annotated[str, typer.Argument(help="The model.", show_default=False)],
    version: Annotated[int, typer.Argument(help="The version's number.", show_default=False)],
    alias: Annotated[str, typer.Argument(help="Such as champion or candidate.", show_default=False)],
    gates: Gates = None,
    verbose: Verbose = False,
) -> None:
    """Point an alias at a version, taking it from any other.

    What is deployed stays as it is until it is deployed again; `maas promote`
    brings endpoints along. A gate compares a metric with a number, or with
    what a version or an alias has: ALIAS, ALIAS - 0.01, ALIAS * 0.99. `f1` is
    that of the newest evaluation, `validation/f1` that of a split, also from
    training. The alias stays where a gate does not hold: exit status 1.

    Examples:
      maas alias stdlib-lm 3 champion
      maas alias digits 4 champion --if 'f1 >= champion - 0.005' --if 'loss < 0.3'
    """
    from maas_ray import Registry
    from maas_ray.registry.gates import pass_gates
    from maas_ray.registry.versions import check_alias
    from maas_ray.terminal.lines import say

    registry = Registry(_settings())
    found = registry.resolve(f"{name}/{version}")
    pass_gates(registry, found, check_alias(alias), gates or ())
    registry.set_alias(found, alias)
    say(f"{name}@{alias} is now {found.reference}")


# --- what there is ---------------------------------------------------------------------------------


@app.command(name="data", rich_help_panel=_LOOK)
def data_(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATASET]", help="Look at this one: NAME, NAME/FINGERPRINT or a URI.", show_default=False
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Rows of each kind to show. Default: 3; in a report 12.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write a report for a browser.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List datasets; with a name, what is in one and what was left out.

    Of one dataset: rows by split, what was left out by reason, what cleaning
    changed, lengths, labels, columns, examples, duplicates beside what they
    are duplicates of, and rows in quarantine with their errors. --html writes
    all of it as one file with plots, which needs nothing else to be read.

    Examples:
      maas data
      maas data stdlib
      maas data digits --html digits.html
      maas data digits --json | jq .counts
    """
    from maas_ray.views.dataset import text as showing

    if name is None:
        if html is not None:
            raise typer.BadParameter("a report is of one dataset; name it: maas data DATASET --html FILE")
        showing.show_datasets(_settings(), as_json=as_json)
        return
    seen = showing.see(_settings(), name, examples or (3 if html is None else 12))
    if html is not None:
        from maas_ray.views.dataset.html import write

        write(seen, html)
    if as_json:
        print(json.dumps(showing.document(seen), indent=2))
    elif html is not None:
        typer.echo(f"report  {html}")
    else:
        showing.show(seen)


@app.command(rich_help_panel=_LOOK)
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|NAME/VERSION|NAME@ALIAS]",
            help="Show this model's versions in full, or one version with its evaluations.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List models; with a name, its versions with metrics and lineage.

    The newest is shown with the spec it was trained by, defaults filled in;
    --json has every version's. Of one version, also what it was evaluated at,
    with intervals, tables and slices. MLflow's own client and web interface
    show the same ones.

    Examples:
      maas models
      maas models stdlib-lm
      maas models stdlib-lm@champion
      maas models --json | jq '.[].reference'
    """
    from maas_ray.views import status

    status.show_models(_settings(), name, as_json=as_json)


@app.command(rich_help_panel=_LOOK)
def runs(
    run: Annotated[
        str | None,
        typer.Argument(help="Show this run: its name, or how its MLflow run id begins.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many to list.")] = 20,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the run's curves.", show_default=False)
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List training runs, newest first; with a name, one run and its curves.

    Of one run: its parameters, last metrics, where the time went, and curves
    of loss, learning rate and throughput.

    Examples:
      maas runs
      maas runs stdlib-lm-1f3a9c02
      maas runs stdlib-lm-1f3a9c02 --png curves.png
      maas runs --json | jq '.[] | select(.state == "failed").name'
    """
    from maas_ray.views import runs as shown

    if run is not None:
        shown.show_run(_settings(), run, as_json=as_json, png=png)
    elif png is not None:
        raise typer.BadParameter("curves are of one run; name it: maas runs RUN --png FILE", param_hint="--png")
    else:
        shown.show_runs(_settings(), limit, as_json=as_json)


@app.command(rich_help_panel=_LOOK)
def endpoints(
    name: Annotated[
        str | None, typer.Argument(help="Show what this endpoint serves and served before.", show_default=False)
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List what is served; with a name, what one endpoint served before.

    The numbers of its history are what `maas rollback --to` takes.

    Examples:
      maas endpoints
      maas endpoints stdlib-lm
    """
    from maas_ray.views import status

    if name is None:
        status.show_endpoints(_settings(), as_json=as_json)
    else:
        status.show_history(_settings(), name, as_json=as_json)


@app.command(rich_help_panel=_LOOK)
def diff(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC.yaml]", help="Compare this spec.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare what runs with what should, or a spec with what should.

    Without a spec: endpoints that do not run, have failed, are half deployed or
    serve another version than the database says; routes of the gateway that
    differ; applications that nobody needs. `maas reconcile` puts it right.
    With a spec: what `maas deploy` of it would change.
    Exit status 1 where there is a difference, also of errors; 2 of a wrong spec.

    Examples:
      maas diff
      maas diff deploy.yaml
    """
    from maas_ray import DeploySpec
    from maas_ray import diff as verb
    from maas_ray.views import status

    read = None if spec is None else DeploySpec.from_yaml(spec, overrides or ())
    found = verb(read)
    status.show_differences(found, as_json=as_json)
    if found:
        raise typer.Exit(1)


@app.command(name="status", rich_help_panel=_LOOK)
def status_(verbose: Verbose = False) -> None:
    """One screen: cluster, jobs, models, endpoints."""
    from maas_ray.views import status

    status.show_status(_settings())


# --- the cluster -----------------------------------------------------------------------------------


@app.command(rich_help_panel=_CLUSTER)
def up(
    num_cpus: Annotated[
        int | None,
        typer.Option(min=1, help="Logical CPUs. Default: the cores; below 8 cores, two for each.", show_default=False),
    ] = None,
    num_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs. Default: all.", show_default=False)] = None,
    dashboard_port: Annotated[int, typer.Option(help="First port to try for the dashboard.")] = 8265,
    verbose: Verbose = False,
) -> None:
    """Start a Ray cluster on this machine; the verbs do it by themselves.

    It listens on loopback only and asks for Ray's token (RAY_AUTH_MODE=disabled:
    for none). Endpoints that should stand come back, as by `maas reconcile`.
    For a cluster of many machines see cluster.yaml and `ray up`.

    Example:
      maas up --num-cpus 8
    """
    from maas_ray import cluster

    cluster.up(_settings(), num_cpus=num_cpus, num_gpus=num_gpus, dashboard_port=dashboard_port)
    _reconcile(quiet=True)


@app.command(rich_help_panel=_CLUSTER)
def reconcile(verbose: Verbose = False) -> None:
    """Make what runs what should, once.

    Brings back endpoints that should stand and do not, finishes or takes back
    what a deployer left half done, gives the gateway its routes, deletes
    applications that nobody needs. It can be interrupted and run again.

    Examples:
      maas reconcile
      maas diff || maas reconcile
    """
    _reconcile()


def _reconcile(*, quiet: bool = False) -> None:
    from maas_ray import reconcile as verb
    from maas_ray.views import status

    outcomes = verb()
    if outcomes or not quiet:
        status.show_outcomes(outcomes)
    if any(outcome.problem for outcome in outcomes):
        raise typer.Exit(1)


@app.command(rich_help_panel=_CLUSTER)
def down(verbose: Verbose = False) -> None:
    """End the cluster that maas started. Data, models and versions stay."""
    from maas_ray import cluster
    from maas_ray.terminal.lines import say

    for line in cluster.down(_settings()) or ["nothing to end: maas started no cluster here."]:
        say(line)


# --- running and reporting -------------------------------------------------------------------------


def main(*command: str) -> None:
    """The `maas` command; with words of a command, that command with the process's arguments, as `jobs/` has them."""
    with reported():
        app([*command, *sys.argv[1:]], prog_name="maas")


def run_job(spec_type: Any, verb: Callable[[Any], Any], show: Callable[[Any], None] | None = None) -> None:
    """What each script in `jobs/` does: read `SPEC.yaml [--set a.b=c]...` from the command line, call the verb.

    Args:
        spec_type: the verb's spec.
        verb: called with the spec; its docstring is the script's help.
        show: called with what the verb returned, where the verb has not said it itself.
    """

    def job(spec: SpecFile, overrides: Overrides = None, verbose: Verbose = False) -> None:
        result = verb(spec_type.from_yaml(spec, overrides or ()))
        if show is not None:
            show(result)

    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    script.command(help=verb.__doc__)(job)
    with reported():
        script()


@contextmanager
def reported() -> Iterator[None]:
    """End the process as an error deserves, with its message where a person reads it."""
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        # Ends what Ctrl-C would end, in the same way; also where a shell has it ignored (`maas train … &`).
        interrupt = signal.getsignal(signal.SIGINT)
        (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # Typer's for Ctrl-C
            raise
        _tell("interrupted")
        sys.exit(143 if terminated else 130)
    except Exception as error:
        from maas_ray.errors import MaasError, SpecError

        if os.environ.get(_VERBOSE, "").lower() in ("1", "true", "yes", "on"):
            raise
        cause = _cause(error)
        if isinstance(cause, MaasError):
            _tell(str(cause))
            sys.exit(2 if isinstance(cause, SpecError) else 1)
        last = str(error).strip().splitlines() or [""]
        _tell(f"{type(error).__name__}: {last[-1]}\nThis was not foreseen; --verbose shows where it happened.")
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _cause(error: BaseException) -> BaseException:
    """The platform's own error inside what Ray wraps around errors of other processes."""
    from maas_ray.errors import MaasError

    inner: BaseException | None = error
    while inner is not None:
        wrapped = getattr(inner, "cause", None)  # Ray's: an error that looks like its cause, and holds it
        if isinstance(wrapped, BaseException) and wrapped is not inner:
            inner = wrapped
        elif isinstance(inner, MaasError):
            return inner
        else:
            inner = inner.__cause__
    return error


def _tell(message: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style="red", markup=False)


def _spec_of(spec_type: Any, target: str, verb: str, overrides: list[str]) -> Any:
    """The spec of a file, or of a version that was named in its place."""
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        return spec_type.from_yaml(target, overrides)
    named = f"version={json.dumps(target)}"  # as an override: it stands on no line
    return spec_type.from_text("", source=f"maas {verb} {target}", overrides=[named, *overrides])


def _settings() -> "Settings":
    from maas_ray import Settings

    settings: Settings = Settings.from_environment()
    return settings
