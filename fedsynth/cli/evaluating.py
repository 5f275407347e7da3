"""What ``fedsynth evaluate`` does."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsynth.api.image_folders import check_folder, dataset_root
from fedsynth.api.measuring import Measured, measure
from fedsynth.cli.options import given_keys
from fedsynth.config import RunConfig, keys_of
from fedsynth.disk import check_writable, explained_writing
from fedsynth.errors import UserError
from fedsynth.evaluation import SPREAD, SPREAD_LEGEND, measure_rows
from fedsynth.files import nonfinite_as_null, write_json
from fedsynth.output import ReportContent, evaluation_parts, headings_and_meanings, terminal_table, write_report
from fedsynth.text import printable


def evaluate(options: argparse.Namespace) -> int:
    """Print the measures.

    Raises:
        UserError: a folder cannot be read, the two do not fit each other, or a file cannot be written.
    """
    config = RunConfig.from_run_config({**given_keys(options, keys_of("evaluate")), "dataset": "imagefolder"})
    _check_files(options, dataset_root(options.dataset))
    measured = measure(options.dataset, options.real, config, illustrated=options.report is not None)
    evaluation = measured.evaluation
    rows = measure_rows([evaluation])
    print(terminal_table(rows))
    if any(SPREAD in row for row in rows.values()):
        print(SPREAD_LEGEND)
    for note in evaluation.notes:
        print(f"note: {printable(note)}")
    if options.output:
        with explained_writing(options.output):
            write_json(options.output, nonfinite_as_null(evaluation.row()))
        print(f"numbers {options.output}")
    if options.report:
        write_report(options.report, _report(options.dataset, measured))
        print(f"report  {options.report}")
    return 0


def _check_files(options: argparse.Namespace, root: Path) -> None:
    """Refuse what could not be written at the end, when numbers would be lost."""
    check_folder("--real", options.real)
    files = {"--output": options.output, "--report": options.report}
    for option, path in files.items():
        if path is not None:
            _check_writable(option, path)
    if None not in files.values() and options.output.resolve() == options.report.resolve():
        raise UserError(f"--output and --report are the same file '{options.report}': give two names")
    for folder in (root, options.real):
        if options.report is not None and folder.resolve() in options.report.resolve().parents:
            raise UserError(
                f"--report '{options.report}' lies among the images in '{folder}', where its pictures would count as"
                " images too; choose another folder"
            )


def _check_writable(option: str, path: Path) -> None:
    if path.is_dir():
        example = path / ("numbers.json" if option == "--output" else "report.html")
        raise UserError(f"{option} '{path}' is a folder: give the name of a file, such as {example}")
    try:
        check_writable(path)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def _report(path: Path, measured: Measured) -> ReportContent:
    synthetic, test, evaluation = measured.synthetic, measured.test, measured.evaluation
    row, name, results = evaluation.row(), evaluation.main_classifier, measure_rows([evaluation])
    return ReportContent(
        title=f"{path.name or path.resolve().name}, measured",
        explanation=f"{len(synthetic)} labelled synthetic images measured against {len(test)} real test images.",
        classes=synthetic.classes,
        synthetic_images=synthetic.images,
        synthetic_labels=synthetic.labels,
        headline={
            f"accuracy on real test images ({name.upper()} trained on synthetic)": row[f"accuracy-{name}"],
            "the same trained on real images": row[f"real-accuracy-{name}"],
            "coverage of real test images": row["coverage"],
        },
        results=results,
        real_images=test.images,
        real_labels=test.labels,
        limits=evaluation.notes,
        **headings_and_meanings(results),
        **evaluation_parts(evaluation),
    )
