"""What ``fedsynth evaluate`` does."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from fedsynth.cli.options import given_keys
from fedsynth.config import AUTO, RunConfig, keys_of
from fedsynth.data import (
    LabelledImages,
    configured_range,
    describe_conversion,
    find_folds,
    load_dataset,
    origins_in_folders,
    read_image_folder,
    visible_folders,
)
from fedsynth.diffusion import AUTOENCODER, codec_of
from fedsynth.disk import check_writable, explained_writing
from fedsynth.errors import UserError
from fedsynth.evaluation import Evaluation, Evaluator, ImageSet, Settings, measure_rows
from fedsynth.evaluation.memorisation import Reconstruct
from fedsynth.files import nonfinite_as_null, parse_json, write_json
from fedsynth.output import (
    ReportContent,
    RunFolder,
    evaluation_parts,
    folder_names,
    headings_and_meanings,
    terminal_table,
    write_report,
)
from fedsynth.output.dataset import PROVENANCE
from fedsynth.spec import ImageSpec
from fedsynth.text import printable

logger = logging.getLogger("fedsynth")


def evaluate(options: argparse.Namespace) -> int:
    """Print the measures.

    Raises:
        UserError: a folder cannot be read, the two do not fit each other, or a file cannot be written.
    """
    config = RunConfig.from_run_config({**given_keys(options, keys_of("evaluate")), "dataset": "imagefolder"})
    settings, root = Settings.of(config), _dataset_root(options.dataset)
    _check_files(options, root)
    train, test = _read_real(options.real, root, config)
    settings.check(train.images.shape[1:])
    synthetic = _read(root, train, config)
    conversions = _conversions(root, options.real, train)
    for said in conversions:
        logger.info(said)
    evaluator = Evaluator(
        ImageSet("real training images", train.images, train.labels),
        ImageSet("real test images", test.images, test.labels),
        train.classes,
        config.run.seed,
        settings,
        progress=logger.info,
        reconstruct=_reconstruct(config, train),
    )
    evaluation = evaluator.evaluate(synthetic.images, synthetic.labels, illustrated=options.report is not None)
    evaluation = replace(evaluation, notes=(*conversions, *_passed_unseen(root, config), *evaluation.notes))
    print(terminal_table(measure_rows([evaluation])))
    for note in evaluation.notes:
        print(f"note: {printable(note)}")
    if options.output:
        with explained_writing(options.output):
            write_json(options.output, nonfinite_as_null(evaluation.row()))
        print(f"numbers {options.output}")
    if options.report:
        write_report(options.report, _report(options.dataset, synthetic, test, evaluation))
        print(f"report  {options.report}")
    return 0


def _dataset_root(path: Path) -> Path:
    """The folder that holds the class folders: ``path``, or inside it if it is a run folder."""
    run = RunFolder(path)
    root = run.synthetic if run.synthetic.is_dir() else path
    _check_folder("dataset", root)
    if root == path and run.config.is_file():
        raise UserError(
            f"the run folder '{path}' has no synthetic/: its run did not finish; resume it, or give another"
        )
    sets = sorted(child for child in root.iterdir() if (child / PROVENANCE).is_file())
    if sets:
        raise UserError(f"'{root}' holds {len(sets)} datasets: measure one at a time, such as {sets[0]}")
    return root


def _check_folder(name: str, path: Path) -> None:
    if not path.is_dir():
        found = " (it is a file)" if path.exists() else ""
        raise UserError(f"{name}: there is no folder '{path}'{found}; give one with one folder of images per class")


def _check_files(options: argparse.Namespace, root: Path) -> None:
    """Refuse what could not be written at the end, when numbers would be lost."""
    _check_folder("--real", options.real)
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


def _read_real(path: Path, dataset: Path, config: RunConfig) -> tuple[LabelledImages, LabelledImages]:
    asked = config.data
    size = None if asked.image_size == AUTO else asked.image_size
    # The dataset has class folders, so that their names tell whether those of the real images lie in silos' folders.
    origins = origins_in_folders(path, visible_folders(dataset))
    folds = load_dataset(
        "imagefolder",
        path,
        image_size=size,
        skip_bad_images=asked.skip_bad_images,
        value_range=configured_range(asked),
        first_page_only=asked.first_page_only,
        seed=config.run.seed,
        origins=origins,
    )
    train, test = map(len, folds)
    if min(train, test) < 2:
        raise UserError(
            f"--real '{path}' gives {train} training and {test} test images, at least 2 of each are needed: add images;"
            " without folders train/ and test/ one image in five of each class is for testing"
        )
    return folds


def _read(root: Path, real: LabelledImages, config: RunConfig) -> LabelledImages:
    """Read the dataset in the format of the real images, under their class names."""
    _, size, _, channels = real.images.shape
    # Our datasets name their folders so that every reader understands them; real folders may be named otherwise.
    folders = folder_names(real.classes) if (root / PROVENANCE).is_file() else real.classes
    data = read_image_folder(
        root,
        image_size=size,
        channels=channels,
        skip_bad_images=config.data.skip_bad_images,
        classes=folders,
        value_range=configured_range(config.data),
        first_page_only=config.data.first_page_only,
    )
    if len(data) < 2:
        raise UserError(f"dataset '{root}': 1 image, at least 2 are needed; give more images")
    return LabelledImages(data.images, data.labels, real.classes)


def _conversions(root: Path, real: Path, train: LabelledImages) -> tuple[str, ...]:
    image_shape, known = train.images.shape[1:], (*train.classes, *folder_names(train.classes))
    folds = find_folds(real)
    folders = {"real train": folds.train, "real test": folds.test} if folds else {"real": real}
    said = {name: describe_conversion(folder, image_shape, known) for name, folder in folders.items()}
    notes = [f"{name} images were converted: {how}; image-size sets the side" for name, how in said.items() if how]
    if how := describe_conversion(root, image_shape, known):
        notes.append(f"synthetic images were converted to the format of the real ones: {how}")
    return tuple(notes)


def _reconstruct(config: RunConfig, train: LabelledImages) -> Reconstruct | None:
    if not config.model.autoencoder:
        return None
    _, size, _, channels = train.images.shape
    return codec_of(config, ImageSpec(channels, size, train.classes)).reconstruct


def _passed_unseen(root: Path, config: RunConfig) -> tuple[str, ...]:
    """Warn where a dataset says that an autoencoder made its images, and none is given."""
    if config.model.autoencoder:
        return ()
    try:
        codec = parse_json((root / PROVENANCE).read_bytes())["provenance"]["codec"]
    except (OSError, ValueError, TypeError, LookupError):  # of somebody else, or of an earlier version
        return ()
    if not str(codec).startswith(AUTOENCODER):
        return ()
    return ("an autoencoder made these images: without it (autoencoder) fewer copies are found than there are",)


def _report(path: Path, synthetic: LabelledImages, test: LabelledImages, evaluation: Evaluation) -> ReportContent:
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
