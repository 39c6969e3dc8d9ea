"""The command line, installed as `ldznet`. A command is a file of its own in `jobs/`, imported when it is asked for."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

COMMANDS = {
    "demo": "the whole flow on this machine, from nothing, with pictures",
    "scenes": "generate the scenes data set that a recipe describes",
    "miniature": "make the miniature, untrained LDM that a recipe describes",
    "pretrain": "train a small latent diffusion model on generated scenes",
    "plan": "what a precompute and training on it will take, before anything is spent",
    "precompute": "frozen features of a recipe's sets into shards on the object store",
    "cache": "list, show, verify and clean up feature caches",
    "train": "train a network on cached features with Ray Train and DeepSpeed",
    "evaluate": "score networks on cached sets: mIoU, IoU_FG, AP, with intervals",
    "pipeline": "precompute, train and evaluate, one after the other; what is done is not repeated",
    "submit": "any of these jobs on a Ray cluster, its log followed",
    "segment": "masks of phrases in a photo",
    "probe": "which block, at which timestep, knows most about a phrase: AP of small decoders",
    "noise-map": "where a phrase changes the frozen LDM's noise estimate: heat maps",
    "services": "an S3 server, MLflow and a Ray head on this machine: start, status, stop",
    "import": "an LD-ZNet or Stable Diffusion checkpoint into a folder that the other commands take",
}
_FILES = {"import": "import_checkpoint", "noise-map": "noise_map"}  # where a command's name is not its file's

_DESCRIPTION = """\
Text-based image segmentation on the inside of Stable Diffusion: frozen features are computed once into shards on
object storage, and every experiment trains on those shards."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        command: int = importlib.import_module(f"jobs.{_FILES.get(arguments[0], arguments[0])}").main(
            arguments[1:]
        )
        return command
    if arguments and not arguments[0].startswith("-"):
        print(f"ldznet: {_unknown(arguments[0])}", file=sys.stderr)  # noqa: T201 - the one line for the user
        return 2
    _parser().parse_args(arguments or ["--help"])
    return 0


def _unknown(word: str) -> str:
    nearest = difflib.get_close_matches(word, COMMANDS, n=1)
    mend = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(COMMANDS)}"
    return f"there is no command {word!r}: {mend}"


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ldznet",
        description=_DESCRIPTION,
        epilog=f"commands:\n{commands}\n\n`ldznet COMMAND --help` tells more; recipes lie in jobs/recipes/.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ldznet {version('ldznet')}")
    parser.add_argument(
        "command", choices=tuple(COMMANDS), metavar="COMMAND", help="one of the commands below"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
