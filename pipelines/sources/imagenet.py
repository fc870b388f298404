"""ImageNet (ILSVRC 2012) as it is distributed: names of classes, and labels of the flat validation folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pyarrow.csv

from pipelines.errors import ConfigError, DataError
from pipelines.sources.base import SOURCES
from pipelines.sources.csv_table import FileReader
from pipelines.sources.folder import ParallelWalk
from pipelines.sources.layout import reject_by_name
from pipelines.sources.locations import parse_source_location
from pipelines.sources.matlab import read_classes
from pipelines.sources.options import SourceOptions
from pipelines.sources.splits import join_names
from pipelines.sources.table import Item, TableSource, build_source

# Folder of `train` and `val` below the one that is named: as extracted by hand, or from Kaggle's archive.
BASES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
# Files are looked for in these folders too.
KIT = ("", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12", "data")
SYNSET = re.compile(r"n\d{8}")
SOLUTION_COLUMNS = ("ImageId", "PredictionString")
TRAIN = "train"
VALIDATION = "val"

Synset = str  # WordNet ID, such as n01440764
Words = dict[Synset, str]  # all words for each class, such as "tench, Tinca tinca"


class _Truth(NamedTuple):
    """Labels of the validation photos.

    Attributes:
        synsets: Class of each photo, by the name of the file without its suffix.
        note: Sentence about where they are from.
    """

    synsets: Mapping[str, Synset]
    note: str


@SOURCES.register("imagenet")
def open_imagenet(argument: str, options: SourceOptions | None = None) -> TableSource:
    """Lists ImageNet in a folder with `train/n01440764/*.JPEG` and `val/*.JPEG`.

    Labels are in the order of the WordNet IDs, as in torchvision, timm and Keras. A class is named by the
    first word for it; if several classes have that word, by all of its words, and if these are the same as
    well ("crane"), with its WordNet ID.

    Names come from `LOC_synset_mapping.txt` (Kaggle), `synset_words.txt` (Caffe) or `meta.mat` (development
    kit, needs SciPy). Labels of a flat `val` come from `LOC_val_solution.csv` (Kaggle), or
    `ILSVRC2012_validation_ground_truth.txt` with `meta.mat`.

    Args:
        argument: Path of the folder.
        options: Class names that the user specified.

    Raises:
        ConfigError: There is no such folder, or an option does not apply.
        DataError: The folder does not hold ImageNet, or the labels of `val` are missing or damaged.
    """
    options = options or SourceOptions()
    name = f"imagenet:{argument}"
    root = parse_source_location("imagenet", argument)
    if not isinstance(root, Path):
        fix = "copy it to a disk, or build the shards where it is"
        raise ConfigError("ImageNet on a disk", f"source={name}", fix)
    if not root.is_dir():
        raise ConfigError("a folder", f"source={name} (no such folder)", "check the path")
    if options.splits is not None or options.columns is not None:
        names = " and ".join(option for option in options.list_names() if option != "--classes")
        raise ConfigError("no --splits and --columns", f"source={name} with {names}", f"leave {names} out")
    base = _find_base(name, root)
    synsets = _list_synsets(root / base / TRAIN)
    words, notes = _read_words(root, synsets)
    class_names = _name_classes(synsets, words)
    label_of = dict(zip(synsets, class_names, strict=True))
    items = [*_list_folders(root, f"{base}{TRAIN}", "train", label_of)]
    if (root / base / VALIDATION).is_dir():
        validation, note = _list_validation(name, root, f"{base}{VALIDATION}", label_of)
        items += validation
        notes.append(note)
    return build_source(name, items, FileReader(str(root)), options, notes, class_names=class_names)


def _find_base(name: str, root: Path) -> str:
    """Returns the path of the folder that holds `train`, with a slash at its end unless it is empty.

    Raises:
        DataError: There is no folder of a class.
    """
    for base in BASES:
        if _list_synsets(root / base / TRAIN):
            return f"{base}/" if base else ""
    folders = [f"{base}/{TRAIN}".lstrip("/") for base in BASES]
    fix = "extract the archives of ImageNet as pipelines/README.md describes, or name the folder above train"
    raise DataError(
        "folders named by WordNet IDs, such as train/n01440764",
        f"source={name}: none in {join_names(folders)}",
        fix,
    )


def _list_synsets(folder: Path) -> list[Synset]:
    """Returns the folders of classes, sorted by their WordNet IDs; none if there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if SYNSET.fullmatch(entry.name) and entry.is_dir())


def _list_folders(root: Path, folder: str, split: str, label_of: Mapping[Synset, str]) -> Iterator[Item]:
    """Yields the photos below the folders of the classes."""
    start = f"{folder}/"
    for path, size in _list_files(root, [f"{start}{synset}" for synset in _list_synsets(root / folder)]):
        synset = path.removeprefix(start).partition("/")[0]
        yield _build_item(path, size, split, label_of.get(synset, synset))


def _list_validation(
    name: str, root: Path, folder: str, label_of: Mapping[Synset, str]
) -> tuple[list[Item], str]:
    """Lists the validation photos, and says where their labels are from.

    Raises:
        DataError: The folder is flat, and the labels are missing or damaged.
    """
    if _list_synsets(root / folder):
        return [*_list_folders(root, folder, "validation", label_of)], f"labels of {folder}: its folders"
    truth = _read_truth(name, root)
    items = []
    for path, size in _list_files(root, [folder]):
        synset = truth.synsets.get(Path(path).stem)
        items.append(_build_item(path, size, "validation", label_of.get(synset) if synset else None))
    return items, f"labels of {folder}: {truth.note}"


def _list_files(root: Path, folders: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yields path inside the root and size in bytes of all files in some folders."""
    walk = ParallelWalk(os.fsencode(root), [os.fsencode(root / folder) for folder in folders])
    for batch in walk.iterate_batches():
        for path, size in zip(batch["path"].to_pylist(), batch["size"].to_pylist(), strict=True):
            yield os.fsdecode(path), size


def _build_item(path: str, size: int, split: str, label: str | None) -> Item:
    rejected = reject_by_name(os.fsencode(path))
    return Item(path, split, label, size=size, problem=rejected.reason if rejected else None)


def _name_classes(synsets: Iterable[Synset], words: Words) -> tuple[str, ...]:
    """Returns the first word for each class, all of its words or these with the WordNet ID: what is unique.

    A class without words is named by its WordNet ID.
    """
    known = {synset: words.get(synset, synset) for synset in synsets}
    first_words = {synset: names.partition(",")[0] for synset, names in known.items()}
    first_counts = Counter(name.casefold() for name in first_words.values())
    counts = Counter(names.casefold() for names in known.values())
    result = []
    for synset, names in known.items():
        if first_counts[first_words[synset].casefold()] == 1:
            result.append(first_words[synset])
        elif counts[names.casefold()] == 1:
            result.append(names)
        else:
            result.append(f"{names} ({synset})")
    return tuple(result)


def _read_words(root: Path, synsets: Iterable[Synset]) -> tuple[Words, list[str]]:
    """Reads the words for each class, and says from which file; none if there is no such file."""
    readers: dict[str, Callable[[Path], Words]] = {
        "LOC_synset_mapping.txt": _read_mapping,
        "synset_words.txt": _read_mapping,
        "meta.mat": lambda path: dict(_read_meta(path).values()),
    }
    for file, read in readers.items():
        path = _find_file(root, file)
        if path is not None:
            words = read(path)
            missing = [synset for synset in synsets if synset not in words]
            note = f"class names: the first word for each WordNet ID in {path.relative_to(root)}"
            if missing:
                note += f"; none there: {join_names(missing)}"
            return words, [note]
    return {}, [f"class names: WordNet IDs, because there is no {' or '.join(readers)}"]


def _read_mapping(path: Path) -> Words:
    """Reads lines such as `n01440764 tench, Tinca tinca`.

    Raises:
        DataError: A line has another form.
    """
    words = {}
    for number, line in enumerate(_read_lines(path), 1):
        synset, _, names = line.strip().partition(" ")
        if not SYNSET.fullmatch(synset) or not names.strip():
            received = f"{path}: line {number}: {line!r}"
            raise DataError("lines such as 'n01440764 tench, Tinca tinca'", received, "repair it")
        words[synset] = names.strip()
    return words


def _read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file.

    Raises:
        DataError: It cannot be read, or is not text.
    """
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError("a text file in UTF-8", f"{path}: {reason}", "copy it again") from None


def _read_truth(name: str, root: Path) -> _Truth:
    """Reads the labels of the validation photos.

    Raises:
        DataError: There is no file with them, or it is damaged.
    """
    solution = _find_file(root, "LOC_val_solution.csv")
    if solution is not None:
        return _Truth(_read_solution(solution), str(solution.relative_to(root)))
    numbers = _find_file(root, "ILSVRC2012_validation_ground_truth.txt")
    meta = _find_file(root, "meta.mat")
    if numbers is not None and meta is not None:
        note = f"{numbers.relative_to(root)}, whose numbers are those of {meta.relative_to(root)}"
        return _Truth(_read_ground_truth(numbers, _read_meta(meta)), note)
    raise DataError(
        "labels of the photos in val: LOC_val_solution.csv, or ILSVRC2012_validation_ground_truth.txt and "
        "meta.mat of the development kit",
        f"source={name}: neither",
        f"copy them to {root}, or move the photos into one folder per WordNet ID",
    )


def _read_solution(path: Path) -> dict[str, Synset]:
    """Reads Kaggle's table, whose second column begins with the WordNet ID.

    Raises:
        DataError: The file has other columns or values.
    """
    try:
        columns = dict.fromkeys(SOLUTION_COLUMNS, pyarrow.string())
        convert = pyarrow.csv.ConvertOptions(
            column_types=columns, include_columns=list(columns), strings_can_be_null=False
        )
        table = pyarrow.csv.read_csv(path, convert_options=convert)
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError("columns ImageId and PredictionString", f"{path}: {reason}", "repair it") from None
    synsets = {}
    for photo, prediction in zip(*(column.to_pylist() for column in table.columns), strict=True):
        synset = prediction.partition(" ")[0]
        if not SYNSET.fullmatch(synset):
            received = f"{path}: {photo}: {prediction!r}"
            raise DataError("a WordNet ID for every photo", received, "repair it")
        synsets[photo] = synset
    return synsets


def _read_ground_truth(path: Path, meta: Mapping[int, tuple[Synset, str]]) -> dict[str, Synset]:
    """Reads the number of the class of each photo, line by line; photos are numbered from 1.

    Raises:
        DataError: A line is not the number of a class.
    """
    synsets = {}
    known = {str(identifier): synset for identifier, (synset, _) in meta.items()}
    for number, line in enumerate(_read_lines(path), 1):
        if line.strip() not in known:
            received = f"{path}: line {number}: {line!r}"
            raise DataError("an ILSVRC2012_ID of meta.mat in every line", received, "repair it")
        synsets[f"ILSVRC2012_val_{number:08d}"] = known[line.strip()]
    return synsets


def _read_meta(path: Path) -> dict[int, tuple[Synset, str]]:
    """Reads WordNet ID and words of each class by its ILSVRC2012_ID, which differs from the label.

    Raises:
        ConfigError: SciPy is not installed.
        DataError: The file is damaged.
    """
    if find_spec("scipy") is None:
        fix = "pip install scipy, or copy LOC_synset_mapping.txt and LOC_val_solution.csv to the folder"
        raise ConfigError("SciPy, to read a file of MATLAB", f"{path} without SciPy", fix)
    try:
        return {number: (synset, words) for number, synset, words in read_classes(path)}
    except ValueError as error:
        received = f"{path}: {error}".rstrip(".")
        raise DataError("meta.mat of ImageNet's development kit", received, "copy it again") from None


def _find_file(root: Path, name: str) -> Path | None:
    """Finds a file next to the photos or in the development kit."""
    for folder in KIT:
        if (root / folder / name).is_file():
            return root / folder / name
    return None
