"""The commands from data to a measured version: `prepare`, `train`, `evaluate`, `predict`."""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from typing import Annotated

import typer

from maas_ray.cli import completion
from maas_ray.cli.options import (
    PIPELINE,
    DryRun,
    Json,
    Overrides,
    SpecFile,
    Verbose,
    app,
    print_lines,
    spec_of,
)
from maas_ray.terminal.lines import print_json


@app.command(rich_help_panel=PIPELINE)
def prepare(
    spec: SpecFile,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Prepare all files again, even if an existing dataset could grow.")
    ] = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Turn raw data into a prepared dataset.

    It reads text, CSV, JSONL, Parquet, Arrow, tar shards, SQL, images or sound,
    on disk or in an object store. It cleans the rows, drops duplicates, splits,
    fits the task's features on the training split and writes shards.
    `maas data NAME` shows the dataset and the dropped rows by reason.

    The same spec and input reuse the dataset. If files were added, only those
    are read, and existing rows stay in their split. An interrupted run resumes
    when it is run again.

    Examples:
      maas prepare jobs/specs/stdlib-prepare.yaml
      maas prepare prepare.yaml --dry-run
      maas prepare prepare.yaml --set splits.test=0.1 --set task.tokenizer.vocab_size=4096
    """
    from maas_ray.data.prepare import prepare as verb
    from maas_ray.data.spec import PrepareSpec

    parsed = PrepareSpec.from_yaml(spec, overrides or ())
    if dry_run:
        from maas_ray.data.dry_run import dry_run as rehearse

        print_lines(rehearse(parsed, fresh=fresh))
    else:
        verb(parsed, fresh=fresh)


@app.command(rich_help_panel=PIPELINE)
def train(spec: SpecFile, overrides: Overrides = None, dry_run: DryRun = False, verbose: Verbose = False) -> None:
    """Train on a dataset and register the result as a version.

    It runs DeepSpeed on the cluster's workers and saves checkpoints. The result
    is a bundle in Hugging Face layout and a registered version with metrics
    and lineage. An interrupted run resumes from its last checkpoint when it
    is run again.

    Examples:
      maas train train.yaml
      maas train train.yaml --dry-run
      maas train train.yaml --set epochs=3 --set workers=4 --set alias=candidate
    """
    from maas_ray.training.run import train as verb
    from maas_ray.training.spec import TrainSpec

    parsed = TrainSpec.from_yaml(spec, overrides or ())
    if dry_run:
        from maas_ray.training.dry_run import dry_run as rehearse

        print_lines(rehearse(parsed))
    else:
        verb(parsed)


@app.command(rich_help_panel=PIPELINE)
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="SPEC|NAME@ALIAS|NAME/VERSION",
            help="Version to evaluate, or a YAML file.",
            show_default=False,
            autocompletion=completion.spec_files,
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="Dataset. Default: the one that the version was trained on.",
            show_default=False,
            autocompletion=completion.datasets,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Choose the split. Default: test.", show_default=False)
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            metavar="COLUMN",
            help="Evaluate each value of a column separately, too. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME/VERSION", help="Compare with this version on the same rows.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure a version on a split of a dataset.

    It prints metrics with bootstrap confidence intervals, and tables and plots
    that fit the task: classes, confusion, calibration, residuals, loss by
    position. The report is stored with the version: `maas models NAME/VERSION`
    shows it, and the gates of `maas alias --if` and `maas promote --if` read
    it. --slice accepts the columns in `keep` of the dataset's spec.

    Examples:
      maas evaluate stdlib-lm@champion
      maas evaluate digits/3 digits --slice scanner --against digits@champion
      maas evaluate evaluate.yaml --set version=stdlib-lm/2 --set split=validation
    """
    from maas_ray.evaluation import report as reports
    from maas_ray.evaluation.run import evaluate as verb
    from maas_ray.evaluation.spec import EvaluateSpec
    from maas_ray.views import evaluations

    options = {"dataset": dataset, "split": split, "slices": slices, "against": against}
    named = [f"{name}={json.dumps(value)}" for name, value in options.items() if value]
    # With --json, standard output holds the document alone.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        report = verb(spec_of(EvaluateSpec, target, "evaluate", [*named, *(overrides or ())]))
    if as_json:
        print_json(report.document())
    else:
        evaluations.show_report(*reports.find(report.uri))


@app.command(rich_help_panel=PIPELINE)
def predict(
    target: Annotated[
        str,
        typer.Argument(
            metavar="NAME@ALIAS|NAME/VERSION|SPEC",
            help="Version that predicts, or a YAML file.",
            show_default=False,
            autocompletion=completion.spec_files,
        ),
    ],
    source: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="File, directory or glob.", show_default=False)
    ] = None,
    output: Annotated[
        str | None, typer.Argument(metavar="OUTPUT", help="Directory for the predictions.", show_default=False)
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Set the format of the input. Default: from the files' names.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Copy these columns to the output. Default: numbers and short strings.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Predict every row of files: Ray Data in, Parquet out.

    Columns of the input have the names of a request's fields; labels are not
    needed. Each row of the output holds the prediction, the row's origin (path
    and position) and the copied columns. Rows that fail are written to
    OUTPUT/quarantine with the reason. An interrupted run resumes when it is
    run again and does not repeat finished files.

    Examples:
      maas predict digits@champion scans/ answers/
      maas predict notes-lm/3 prompts.jsonl s3://bucket/answers --keep id
      maas predict predict.yaml
    """
    from maas_ray.batch.run import predict as verb
    from maas_ray.batch.spec import PredictSpec

    named = list(overrides or ())
    if source is not None:
        read = json.dumps({"format": form, "path": source} if form else source)
        named = [f"input={read}", *([f"output={json.dumps(output)}"] if output else []), *named]
    elif form is not None:
        raise typer.BadParameter("requires INPUT; in a spec, set `input.format` instead", param_hint="--format")
    if keep is not None:
        named.append(f"keep={json.dumps([name for name in keep.split(',') if name])}")
    verb(spec_of(PredictSpec, target, "predict", named))
