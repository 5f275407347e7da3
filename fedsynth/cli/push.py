"""Push the synthetic set of a finished run, with its card, to the Hugging Face hub; its model only with --models."""

from __future__ import annotations

import argparse

from fedsynth.cli.options import path_of, refuse_rest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and where its images go."""
    parser.add_argument("run", type=path_of, help="run folder")
    parser.add_argument("--repo-id", required=True, metavar="NAME/SET", help="repository of the hub")
    parser.add_argument("--private", action="store_true", help="make a repository that only you and yours see")
    parser.add_argument("--models", action="store_true", help="push the run's model, too, to a model repository")
    parser.add_argument("--license", default="", metavar="WORD", help="licence, such as cc-by-4.0; default: the run's")
    parser.add_argument("--despite-verdict", action="store_true", help="push also what the run's verdict warns of")
    parser.add_argument("--dry-run", action="store_true", help="only list the files and their sizes")


def execute(options: argparse.Namespace, rest: list[str]) -> int:
    """List what is pushed, and push it.

    Raises:
        UserError: it may not be pushed.
        RunError: the hub did not take it.
    """
    refuse_rest("push", rest)
    from fedsynth.api.pushing import planned_uploads, push  # only here: --help would wait seconds for torch
    from fedsynth.api.run import Run
    from fedsynth.units import human_bytes

    run = Run(options.run)
    chosen = {"models": options.models, "license": options.license, "despite_verdict": options.despite_verdict}
    for upload in planned_uploads(run, options.repo_id, **chosen):
        total = sum(upload.sizes.values())
        print(f"{upload.repo_type} {upload.repo_id}: {len(upload.sizes)} files, {human_bytes(total)}")
        if options.dry_run:
            print("\n".join(f"{size:>12,}  {name}" for name, size in sorted(upload.sizes.items())))
    licence = options.license or run.dataset.provenance.get("license", "unknown")
    print(f"licence {licence}{'; name one with --license' if licence == 'unknown' else ''}", flush=True)
    if options.dry_run:
        print("dry run: nothing was sent")
        return 0
    for address in push(run, options.repo_id, private=options.private, **chosen):
        print(address)
    return 0
