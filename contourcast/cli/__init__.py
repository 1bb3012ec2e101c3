"""The command line: a sentence per command, a file per group of them.

Errors are one line on stderr and an exit code: 2 for input that cannot be used, 3 for geometry,
4 for a rejected registration (whose report is written), 1 for anything else.
"""

from __future__ import annotations

import typer

from contourcast.cli import access, audit, fit, train
from contourcast.cli.accept import accept
from contourcast.cli.cohort import cohort
from contourcast.cli.evidence import analyse, evaluate
from contourcast.cli.keeping import export, rebuild, retention
from contourcast.cli.networks import networks
from contourcast.cli.prepare import prepare
from contourcast.cli.propagate import compare, demo, propagate
from contourcast.cli.rules import rules
from contourcast.cli.send import send
from contourcast.cli.service import dicom_node, doctor, serve, settings, worker
from contourcast.cli.simulate import calibrate, simulate
from contourcast.cli.terminal import OneLineErrors

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Carries a tumour's contour from the planning CT to each day's cone-beam CT. "
    "Not a medical device.",
)
for command in (
    propagate,
    simulate,
    calibrate,
    compare,
    evaluate,
    demo,
    networks,
    doctor,
    accept,
    serve,
    send,
    settings,
    rules,
    cohort,
    rebuild,
    retention,
    export,
    worker,
):
    app.command()(command)
app.command("dicom-node")(dicom_node)
app.add_typer(fit.app, name="fit")
app.add_typer(train.app, name="train")
train.app.command()(prepare)
app.add_typer(train.models_app, name="models")
app.add_typer(analyse, name="analyse")
app.add_typer(access.keys, name="keys")
app.add_typer(access.accounts, name="accounts")
app.add_typer(audit.audit, name="audit")


def main() -> None:
    """The entry point ``contourcast``."""
    app()
