"""Run a job on a Ray cluster: its files and recipe are sent, its log is followed, its exit code is ours."""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.entry import exit_code_of

if TYPE_CHECKING:
    from jobs.submit_cluster import Cluster
    from jobs.submit_preparation import Preparation
    from jobs.submit_request import JobRequest

_INTERRUPTED = 130
_EPILOG = """\
Without an address RAY_API_SERVER_ADDRESS or RAY_ADDRESS says which cluster; RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or
RAY_AUTH_TOKEN_PATH) let in. Ctrl-C leaves the job running. A job that runs already is followed, not started twice; one
that has ended is started again, and does what is missing. Credentials are never sent: they are the cluster's to set.
Exit code: 0 done, 2 a mistake in what was asked, 1 anything else, 130 left by Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and act."""
    parser = _parser()
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    stray = [word for word in unknown if not word.startswith("--")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    by_id = arguments.attach or arguments.stop or arguments.status is not None
    if not by_id and arguments.recipe is None:
        parser.error("a job and a recipe are required, or --attach, --stop or --status")
    codes = [0]

    def act() -> None:
        codes.append(_by_id(arguments) if by_id else _submit(arguments, unknown))

    return exit_code_of(act) or codes[-1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldznet submit",
        description=(__doc__ or "").strip(),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "job",
        nargs="?",
        metavar="JOB",
        help="pipeline (precompute, train and evaluate in one), or precompute, train, evaluate, probe, scenes or "
        "miniature alone",
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        type=Path,
        metavar="RECIPE",
        help="a recipe file (YAML), such as jobs/recipes/demo.yaml",
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides; the job's own flags too")
    parser.add_argument("--address", metavar="URL", help="of the cluster, such as http://127.0.0.1:8265")
    parser.add_argument(
        "--working-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the project's folder (default: this one), sent without what .gitignore and .rayignore name",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a further variable for the job; no credentials",
    )
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="follow the log to the end (default)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, send nothing")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--attach", metavar="ID", help="follow a job that was submitted before")
    chosen.add_argument("--stop", metavar="ID", help="end a job")
    chosen.add_argument("--status", nargs="?", const="", metavar="ID", help="of one job, or of all")
    return parser


def _submit(arguments: argparse.Namespace, flags: Sequence[str]) -> int:
    from jobs.submit_cluster import Cluster
    from jobs.submit_preparation import Preparation

    asked = Preparation.of(
        arguments.job,
        arguments.recipe,
        overrides=arguments.overrides,
        flags=flags,
        folder=arguments.working_dir.absolute(),
        variables=arguments.env,
    )
    if arguments.dry_run:
        _say(_dry_run_text(asked, arguments.address))
        return 0
    cluster = Cluster(arguments.address)
    return _send(cluster, asked.request(here=cluster.is_this_machine()), wait=arguments.wait)


def _dry_run_text(asked: "Preparation", address: str | None) -> str:
    from jobs.submit_cluster import Cluster
    from ldznet.errors import UserError

    try:
        cluster = Cluster(address)
        here = cluster.is_this_machine()
    except UserError as error:
        return f"would be sent; nothing was, and no cluster was asked: {error}\n{asked.describe_unasked()}"
    return f"would be sent to {cluster.address}; nothing was\n{asked.request(here=here).describe()}"


def _send(cluster: "Cluster", request: "JobRequest", *, wait: bool) -> int:
    names: list[str] = []  # the job's, from before it is sent
    sent = False
    try:
        name, new = cluster.submit(request, sending=names.append)
        names.append(name)
        sent = True
        _say(
            f"{name}: {'submitted' if new else 'runs already, nothing was sent'}; dashboard {cluster.address}"
        )
        if wait:
            return _follow(cluster, name)
        _say(cluster.how_to_come_back(name))
    except KeyboardInterrupt:
        if not names:
            raise
        return _leave(cluster, names[-1], sent=sent)
    return 0


def _by_id(arguments: argparse.Namespace) -> int:
    from jobs.submit_cluster import Cluster

    cluster = Cluster(arguments.address)
    if arguments.attach:
        return _attach(cluster, arguments.attach)
    if arguments.stop:
        before = cluster.job(arguments.stop)
        state = cluster.stop(arguments.stop)
        _say(f"{state.submission_id}: {'had ended: ' if before.ended else ''}{state.status}")
        return 0
    chosen = cluster.jobs().values() if not arguments.status else [cluster.job(arguments.status)]
    for state in sorted(chosen, key=lambda one: one.started):
        begun = datetime.fromtimestamp(state.started, tz=UTC).astimezone()
        _say(f"{state.submission_id}  {state.status}  since {begun:%Y-%m-%d %H:%M:%S}")
    if arguments.status:
        for key, value in state.metadata.items():
            _say(f"  {key}  {value}")
    return 0


def _attach(cluster: "Cluster", submission_id: str) -> int:
    name = cluster.job(submission_id).submission_id
    try:
        return _follow(cluster, name)
    except KeyboardInterrupt:
        return _leave(cluster, name, sent=True)


def _follow(cluster: "Cluster", submission_id: str) -> int:
    state = cluster.follow(submission_id, lambda text: print(text, end="", flush=True))  # noqa: T201 - the log
    _say(f"{submission_id}: {state.status}")
    if state.status == "SUCCEEDED":
        return 0
    if state.exit_code is None and state.message:
        _say(state.message)
    return 2 if state.exit_code == 2 else 1


def _leave(cluster: "Cluster", submission_id: str, *, sent: bool) -> int:
    goes_on = (
        "the job goes on" if sent else f"{submission_id} was being sent, and runs if the cluster took it"
    )
    _say(f"\nleft: {goes_on}. {cluster.how_to_come_back(submission_id)}")
    return _INTERRUPTED


def _say(line: str) -> None:
    print(line)  # noqa: T201 - the command's result


if __name__ == "__main__":
    sys.exit(main())
