"""Find the image files in a folder, and the split and class of each."""

import errno
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from src.data.dicom import ENDINGS, is_dicom
from src.system.errors import UserError
from src.system.files import readable

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
KINDS = ", ".join(ending.lstrip(".") for ending in (*IMG_EXTENSIONS, *ENDINGS))
NAMED = 8  # folders that a note names


class Listing(NamedTuple):
    """The image files below a folder, and notes on other files."""

    files: list[str]  # paths below the folder, with slashes, sorted folder by folder
    notes: list[str]  # what was left out and why, in words


class Layout(NamedTuple):
    """Split and class of each image file of a data set."""

    files: list[str]
    published: list[str]  # "train", "val" or "test" of each file; "" where the folder does not say
    classes: list[str]  # of each file; "" for none
    notes: list[str]


def split_of(folder: str) -> str | None:
    """Return the split that a folder name means, in any case (``Valid`` is ``val``); None for other names."""
    return next((split for split, names in SPLITS.items() if folder.lower() in names), None)


def list_images(root: Path) -> Listing:
    """List all image files below a folder; follow links, but read each folder once.

    Names that begin with a dot and ``__MACOSX`` are skipped: operating systems leave them behind.
    """
    files: list[str] = []
    endings: Counter[str] = Counter()
    unreadable: list[str] = []
    dangling = repeated = 0
    seen: set[tuple[int, int]] = set()
    folders: list[str] = [""]
    links: list[str] = []
    while folders or links:
        # Links come last, the shortest path first: a folder gets its real name, or else its shortest.
        own = bool(folders)
        below = folders.pop() if own else links.pop(0)
        try:
            entries, identity = _entries(root / below)
        except OSError:
            unreadable.append(below or str(root))
            continue
        if identity in seen:
            repeated += 1
            continue
        seen.add(identity)
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            kind = _kind(entry)
            if kind == "folder":
                (folders if own and not entry.is_symlink() else links).append(path)
            elif kind == "nothing":
                dangling += 1
            elif entry.name.lower().endswith(IMG_EXTENSIONS) or is_dicom(root / path):
                files.append(path)
            else:
                endings[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1
    notes = []
    if endings:
        counts = [f"{ending}: {count:,}" for ending, count in sorted(endings.items(), key=lambda e: (-e[1], e[0]))]
        notes.append(f"files left out, by ending: {_some(counts)}")
    if unreadable:
        notes.append(f"folders that cannot be read: {_some(unreadable)}")
    if dangling:
        notes.append(f"links that lead to no file: {dangling:,}")
    if repeated:
        notes.append(f"links to folders that are read under another name: {repeated:,}")
    # Sort slashes before other characters, so that a folder's files stay together.
    return Listing(sorted(files, key=lambda file: file.replace("/", "\0")), notes)


def _entries(folder: Path) -> tuple[list[os.DirEntry], tuple[int, int]]:
    """Return the entries of a folder, sorted by name, and its device and inode: the same under any name.

    Raises:
        OSError: the folder or its files cannot be read.
    """
    fact = os.stat(folder)
    if not os.access(folder, os.X_OK):
        raise PermissionError(errno.EACCES, "its names can be read, its files cannot", str(folder))
    with os.scandir(folder) as found:
        entries = [e for e in found if not e.name.startswith(".") and e.name != "__MACOSX"]
    return sorted(entries, key=lambda entry: entry.name), (fact.st_dev, fact.st_ino)


def _kind(entry: os.DirEntry) -> str:
    """Return ``folder``, ``file``, or ``nothing`` for a link that leads nowhere or in a circle."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "nothing"
    except OSError:
        return "nothing"


def arrange(root: Path, files: Sequence[str]) -> Layout:
    """Read splits and classes from the paths below ``root``.

    A folder that holds nothing but one folder of folders is entered. Below that, ``train`` with ``val`` or ``test``
    beside it are published splits, and everything else beside them is left out. A single such name beside other folders
    is a split if it holds folders (its classes), and a class if it holds images only. Below a split, or where there
    is none, each folder is a class.

    Raises:
        UserError: two folders mean the same split, or there are splits within what would be a class.
    """
    known: dict[str, str] = {}  # shares the strings: a million files lie in few folders
    homes = [known.setdefault(home, home) for home in (file[: max(file.rfind("/"), 0)] for file in files)]
    counts = Counter(homes)
    folders = {folder: folder.split("/") if folder else [] for folder in counts}
    steps, notes = _wrapper([*folders.values()]), []
    around = "".join(f"{folder}/" for folder in next(iter(folders.values()))[:steps])
    if steps:
        root /= around
        notes.append(f"all images are in {readable(around)}")
    below = {folder: path[steps:] for folder, path in folders.items()}

    splits, classes = _splits(below.values())
    for split in SPLITS:
        if len(same := [f"{folder}/" for folder in splits if split_of(folder) == split]) > 1:
            named = readable(" and ".join(same))
            raise UserError(f"{named} in {readable(root)} are both the {split} split: merge them, or rename one")
    if classes:
        notes.append(f"{_some(classes)} taken for a class: it holds images and no folders of classes")
    if _published(splits):
        beside: Counter[str] = Counter()
        for folder, path in [*below.items()]:
            if not path or path[0] not in splits:
                beside[path[0] if path else ""] += counts[folder]
                del below[folder]
        counted = [
            f"in {around}{folder}/: {count:,}" if folder else f"in no folder: {count:,}"
            for folder, count in beside.items()
        ]
        if counted:
            notes.append(f"images left out beside the splits: {_some(counted)}")
    _refuse_splits_below(root, below.values())

    places = {folder: _place(path, splits) for folder, path in below.items()}
    kept = [i for i, home in enumerate(homes) if home in places]
    found = [places[homes[i]] for i in kept]
    return Layout([files[i] for i in kept], [place.split for place in found], [place.name for place in found], notes)


class _Place(NamedTuple):
    """Split and class of the images of a folder, "" for none."""

    split: str
    name: str


def _place(path: Sequence[str], splits: Sequence[str]) -> _Place:
    inside = bool(path) and path[0] in splits
    rest = path[inside:]
    return _Place(split_of(path[0]) if inside else "", rest[0] if rest else "")


def _published(folders: Iterable[str]) -> bool:
    """Return whether these folder names make a published data set: ``train`` and another split."""
    meant = {split_of(folder) for folder in folders} - {None}
    return "train" in meant and len(meant) > 1


def _wrapper(folders: Sequence[Sequence[str]]) -> int:
    """Return how many folders around the images hold one folder of folders, no split, and nothing else."""
    steps = 0
    while len(tops := {path[steps] if len(path) > steps else "" for path in folders}) == 1:
        (top,) = tops
        if not top or split_of(top) or not any(len(path) > steps + 1 for path in folders):
            break
        steps += 1
    return steps


def _splits(folders: Collection[Sequence[str]]) -> tuple[list[str], list[str]]:
    """Return the folders that are published splits, and those that are classes despite such a name."""
    tops = {path[0] for path in folders if path}
    named = sorted(folder for folder in tops if split_of(folder))
    if _published(named) or len(named) == len(tops):
        return named, []
    with_classes = {path[0] for path in folders if len(path) > 1}
    return [f for f in named if f in with_classes], [f for f in named if f not in with_classes]


def _refuse_splits_below(root: Path, folders: Iterable[Sequence[str]]) -> None:
    """Raise a UserError if a class holds splits: their images would be mixed."""
    below: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in folders:
        for i in range(1, len(path)):
            if split_of(path[i]):
                below[tuple(path[:i])].add(path[i])
    for folder, names in below.items():
        if _published(names):
            held = readable(" and ".join(f"{name}/" for name in sorted(names)))
            raise UserError(
                f"{readable(root.joinpath(*folder))} holds {held} of its own, which would be mixed: set data.root to "
                f"it, or put the classes into the splits (train/{readable(folder[-1])}/ and so on)"
            )


def _some(names: Sequence[str]) -> str:
    """Join the first few names, and say how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return readable(", ".join(names[:NAMED]) + more)
