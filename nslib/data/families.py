"""The ImageNet family, the columns of Table 2, in the folder layouts in which each data set is published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nslib.config import DataConfig
from nslib.data.corruptions import CORRUPTIONS, SEVERITIES, check_corruption
from nslib.data.files import ImageFiles
from nslib.data.folders import class_files, image_files, label_of, subfolders, wnids
from nslib.data.transforms import PUBLISHED, eval_transform
from nslib.vit.staged import StagedViT

_EXTRA_CORRUPTIONS = ("gaussian_blur", "saturate", "spatter", "speckle_noise")  # published beside the 15, never read
_LABEL_FILE = "val_damagenet.txt"


@dataclass(frozen=True)
class Family:
    """How a data set lies on disk.

    `classes` are those that its images come from: where they are fewer than 1,000, logits are masked to them. `resize`
    is False for images published at 224 px.
    """

    title: str
    folder: str  # under data.root, where its own setting is empty
    layout: str
    classes: str = "imagenet-1k"
    resize: bool = True


# By the name of its setting in DataConfig.
FAMILIES: dict[str, Family] = {
    "a": Family("ImageNet-A", "imagenet-a", "<wnid>/*.jpg of 200 classes", classes="imagenet-a"),
    "r": Family("ImageNet-R", "imagenet-r", "<wnid>/*.jpg of 200 classes", classes="imagenet-r"),
    "v2": Family("ImageNet-V2", "imagenetv2", "<0 to 999>/*.jpeg"),
    "sketch": Family("ImageNet-Sketch", "sketch", "<wnid>/*.JPEG"),
    "stylized": Family("Stylized-ImageNet", "stylized", "<wnid>/*.png, the val part alone,", resize=False),
    "c": Family("ImageNet-C", "imagenet-c", "<corruption>/<1 to 5>/<wnid>/*.JPEG", resize=False),
    "damagenet": Family("DAmageNet", "damagenet", f"ILSVRC2012_val_*.png and {_LABEL_FILE}", resize=False),
    "cue_conflict": Family(
        "cue-conflict", "cue-conflict", "<shape>/<shape><i>-<texture><j>.png and classes.json", resize=False
    ),
}


def expected(name: str) -> str:
    """The layout of a family and the setting that says where it lies, for errors."""
    family = FAMILIES[name]
    return f"{family.layout} in the folder of {family.title}: set data.{name}, or put it at <data.root>/{family.folder}"


def family_folder(cfg: DataConfig, name: str) -> Path:
    """Where a family is to be read: its own setting, else its customary name under the root. It need not exist."""
    return Path(getattr(cfg, name) or Path(cfg.root) / FAMILIES[name].folder).expanduser()


def family_labels(name: str) -> tuple[int, ...] | None:
    """The labels to which logits are masked, ascending; None for all 1,000."""
    subset = FAMILIES[name].classes
    return None if subset == "imagenet-1k" else tuple(sorted(label_of(subset).values()))


def open_family(name: str, folder: str | Path, model: StagedViT, *, part: str = "", seed: int = 0) -> ImageFiles:
    """Images of one data set of the family; any subset of the classes and of the images will do.

    Args:
        name: `a`, `r`, `v2`, `sketch`, `stylized`, `c` or `damagenet`.
        part: of ImageNet-C, such as `fog/3`.
    Raises:
        ValueError: the folder is another family's, which is named where that can be told; a corruption is misspelt; a
            line of DAmageNet's label file cannot be read, or lacks an image.
        FileNotFoundError: the folder, the part or the label file is missing, or there are no images; names the layout.
    """
    folder, family = Path(folder).expanduser(), FAMILIES[name]
    transform = eval_transform(model, resize=family.resize, made_for=PUBLISHED)
    try:
        return ImageFiles(folder / part, _files(name, folder, part), transform, layout=expected(name), seed=seed)
    except (FileNotFoundError, ValueError) as error:
        likely = resembles(folder)
        if not likely or family.title in likely:
            raise
        raise type(error)(f"{error}; this folder looks like {likely}") from error


def corruption_parts(folder: Path) -> list[str]:
    """Which of the 75 parts `<corruption>/<severity>` of ImageNet-C a folder holds, in the order of `CORRUPTIONS`.

    The four corruptions published as extra are passed over.

    Raises:
        ValueError: a folder in it is no corruption; tells the nearest names.
    """
    for home in subfolders(folder):
        if home.name not in _EXTRA_CORRUPTIONS:
            check_corruption(home.name, f" in {folder}")
    parts = [f"{name}/{severity}" for name in CORRUPTIONS for severity in SEVERITIES]
    return [part for part in parts if (folder / part).is_dir()]


def check_same_images(part: ImageFiles, first: ImageFiles) -> None:
    """Refuse a part of ImageNet-C with other images than the first: figures by image would mix them up.

    Raises:
        ValueError: files of the same class and name are not in both; names the folder and such a file.
    """
    names, known = ({str(f)[len(str(p.folder)) + 1 :] for f, _ in p.files} for p in (part, first))
    odd = sorted(names ^ known)
    if odd:
        where = "not in the latter" if odd[0] in names else "not in the former"
        raise ValueError(
            f"{part.folder} and {first.folder} differ in {len(odd)} images, {odd[0]} is {where}: all 75 parts of "
            "ImageNet-C must show the same images, complete them or take the odd ones away"
        )


def resembles(folder: Path) -> str:
    """The family that a folder's layout is of, for errors; empty where that cannot be told."""
    if not folder.is_dir():
        return ""
    names = {p.name for p in subfolders(folder)}
    if (folder / "classes.json").is_file():
        return FAMILIES["cue_conflict"].title
    if not names:
        return FAMILIES["damagenet"].title if any(folder.glob("ILSVRC2012_val_*.png")) else ""
    if {"train", "val"} & names:
        return "the root of a data set, with train or val in it"
    if names <= {str(label) for label in range(1000)}:
        return FAMILIES["v2"].title
    if names <= {*CORRUPTIONS, *_EXTRA_CORRUPTIONS}:
        return FAMILIES["c"].title
    subsets = [FAMILIES[name].title for name in ("a", "r") if names <= set(wnids(FAMILIES[name].classes))]
    if subsets:
        return " or ".join(subsets)
    return "a data set of all 1,000 classes, such as val or ImageNet-Sketch" if names <= set(wnids()) else ""


def _files(name: str, folder: Path, part: str) -> list[tuple[Path, int]]:
    """Images of a family, or of a part of it, with their labels."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: expected {expected(name)}")
    if name == "damagenet":
        return _listed_files(folder)
    if name == "c":
        _check_part(folder, part)
    family = FAMILIES[name]
    # ImageNet-V2 names its class folders by place in the wnid order.
    labels = {str(label): label for label in range(len(wnids()))} if name == "v2" else label_of(family.classes)
    return class_files(folder / part, labels, kind=f"class of {family.title}", layout=expected(name))


def _check_part(folder: Path, part: str) -> None:
    corruption, _, severity = part.partition("/")
    check_corruption(corruption)
    if severity not in map(str, SEVERITIES):
        raise ValueError(f"severity must be one of 1, 2, 3, 4, 5, got {severity!r}: ask for a part such as fog/3")
    there = corruption_parts(folder)
    if part not in there:
        named = ", ".join(there[:3]) + (" ..." if len(there) > 3 else "")
        told = f"no folder {folder / part}, of the 75 parts there are {len(there)} ({named or 'none'})"
        raise FileNotFoundError(f"{told}: expected {expected('c')}")


def _listed_files(folder: Path) -> list[tuple[Path, int]]:
    """DAmageNet lies flat, with its labels in a file beside the images or one folder up."""
    images = image_files(folder)
    table = next((home / _LABEL_FILE for home in (folder, folder.parent) if (home / _LABEL_FILE).is_file()), None)
    if images and table is None:
        raise FileNotFoundError(
            f"no {_LABEL_FILE} in {folder} or {folder.parent}: put the published label file beside the images"
        )
    labels = _label_table(table) if images else {}
    bare = [f.name for f in images if f.stem not in labels]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(images)} images in {folder} have no line in {table} ({', '.join(bare[:3])}): "
            "use the published label file, or move them away"
        )
    return [(f, labels[f.stem]) for f in images]


def _label_table(table: Path) -> dict[str, int]:
    """Label of each image by its name without suffix, from lines `name label`."""
    labels = {}
    for number, line in enumerate(table.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        if not line.strip():
            continue
        if not (name and label.isdecimal() and int(label) < 1000):
            raise ValueError(
                f"line {number} of {table} must be a name and a label below 1000, such as "
                f"'ILSVRC2012_val_00000001.png 65', got {line!r}"
            )
        labels[Path(name.strip()).stem] = int(label)
    return labels
