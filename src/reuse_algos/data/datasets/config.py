"""The ``data:`` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reuse_algos.data.datasets.pseudo import PseudoLabels
from reuse_algos.data.datasets.resampling import RESAMPLING
from reuse_algos.data.datasets.rotation import Rotated
from reuse_algos.data.dense.config import DENSE_NAMES, DETECTION_NAMES, SceneConfig
from reuse_algos.data.images.augment import AUGMENT_KINDS
from reuse_algos.data.text.config import TEXT_NAMES, TextConfig
from reuse_algos.errors import DataError, nearest
from reuse_algos.sections import fit_section

_LABELLED_IMAGES = ("digits", "glyphs", "cifar10", "cifar100", "fashion_mnist", "caltech101", "image_folder", "npz")
DATASET_NAMES = (*_LABELLED_IMAGES, *TEXT_NAMES, *DENSE_NAMES, *DETECTION_NAMES)
_OF_IMAGES = ("augment", "num_views", "device_resident", "labels", "image_size", "pseudo_labels", "resample", "rotated")


@dataclass
class DataConfig:
    """Which data, how much of it, and how it is shown.

    Attributes:
        name: ``digits`` (1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn), ``glyphs``
            (3,232 characters of a font of matplotlib by script, 28 x 28 pixels), ``cifar10``, ``cifar100``,
            ``fashion_mnist``, ``caltech101``, ``image_folder`` (``root/train/<class>/*`` and ``root/val/<class>/*``)
            or ``npz`` (one file in the layout of Keras). Texts: ``bbc_news``, ``fortunes``, ``city_names``,
            ``glyph_names`` and ``text_files``, see :func:`~reuse_algos.data.text.load_corpus`. A class for each pixel:
            ``digit_scenes``, ``mni152`` and ``dense_npz``, see :func:`~reuse_algos.data.dense.load_dense`. Boxes:
            ``digit_boxes``.
        root: Folder that holds the dataset, as torchvision lays it out.
        path: The ``.npz`` file: uint8 ``x_train``, ``x_test`` (``[N, H, W]`` or ``[N, H, W, C]``) and whole numbers
            ``y_train``, ``y_test``; if wanted int64 ``keys_train``, ``keys_test`` (identity of each example, else the
            position) and ``class_names`` (strings).
        download: Fetch the dataset into ``root`` if it is not there.
        batch_size: Training examples per step over all ranks.
        eval_batch_size: Evaluation examples per step over all ranks; ``batch_size`` if null.
        augment: ``none``, ``crop``, ``crop_flip`` or ``crop_flip_cutout``. On images in memory: padding of 1/8 of the
            side (4 for 32 pixels), random crop, mirroring, and a cutout of 1/2 of the side up to 10 classes, else 1/4
            (16 and 8 pixels of 32). On image files: random resized crop, mirroring, and a cutout of 1/4 of the side.
        num_views: How many different views of each example there are; 0 for random augmentation without end.
        view_seed: Seed of the views, apart from the seed of the run so that runs share views.
        device_resident: Hold the whole dataset on the device and augment there. ``auto``: images in memory if they
            take under 25 % of the free memory of a GPU, image files never. ``true`` decodes image files once.
        num_workers: DataLoader worker processes where the data is not held on the device.
        drop_last: Leave out the last training batch of an epoch if it is not full.
        train_fraction: Part of the training examples, above 0 up to 1: stratified by class and nested.
        train_examples: Number of training examples instead, chosen the same way.
        train_rest: Take the training examples that ``train_fraction`` or ``train_examples`` leaves out, in place of
            those that it takes: an unlabelled pool beside a labelled part.
        pseudo_labels: Train on the images that archived teachers chose from an unlabelled pool, with the teachers'
            labels in place of the dataset's; null for the dataset's own.
        resample: How often each class is shown: ``natural`` as often as it has examples, ``sqrt`` in proportion to the
            square root of that, ``uniform`` as often as every other class. An epoch has the same number of examples.
        rotated: Make data that drift over time: images in memory, turned further from period to period, with the time
            as one more channel; null for the images as they are.
        classes: Classes to keep (numbers or names), numbered from 0 in this order; all if null.
        labels: ``fine``, or ``coarse`` for the 20 superclasses of CIFAR-100.
        image_size: Side of the images in pixels: images in memory are resized once (null keeps them), image files are
            cropped to it (null is 224).
        text: How texts become tokens, see :class:`~reuse_algos.data.text.TextConfig`. Default: its defaults, for
            datasets of texts.
        scenes: Of ``digit_scenes`` and ``digit_boxes``, see :class:`~reuse_algos.data.dense.SceneConfig`. Default: its
            defaults.
    """

    name: str = "digits"
    root: str = "./data"
    path: str | None = None
    download: bool = False
    batch_size: int = 128
    eval_batch_size: int | None = None
    augment: str = "none"
    num_views: int = 0
    view_seed: int = 0
    device_resident: str | bool = "auto"
    num_workers: int = 0
    drop_last: bool = True
    train_fraction: float = 1.0
    train_examples: int | None = None
    train_rest: bool = False
    pseudo_labels: PseudoLabels | None = None
    resample: str = "natural"
    rotated: Rotated | None = None
    classes: list[int | str] | None = None
    labels: str = "fine"
    image_size: int | None = None
    text: TextConfig | None = None
    scenes: SceneConfig | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("text", TextConfig),
            ("scenes", SceneConfig),
            ("pseudo_labels", PseudoLabels),
            ("rotated", Rotated),
        ):
            if isinstance(given := getattr(self, name), Mapping):  # a recipe that was read back from an archive
                setattr(self, name, fit_section(kind, given, f"data.{name}"))

    def check(self) -> None:
        """Check what can be checked without the data.

        Raises:
            DataError: Naming every fault, one per line.
        """
        faults = []
        if self.name not in DATASET_NAMES:
            faults.append(f"data.name: unknown dataset {self.name!r}.{nearest(str(self.name), DATASET_NAMES)}")
        for field, choices in (("augment", AUGMENT_KINDS), ("labels", ("fine", "coarse")), ("resample", RESAMPLING)):
            value = getattr(self, field)
            if value not in choices:
                faults.append(f"data.{field}: unknown value {value!r}.{nearest(str(value), choices)}")
        if self.device_resident not in ("auto", True, False):
            faults.append(f"data.device_resident: must be auto, true or false, not {self.device_resident!r}.")
        for field, least in (
            ("batch_size", 1),
            ("eval_batch_size", 1),
            ("num_views", 0),
            ("num_workers", 0),
            ("train_examples", 1),
            ("image_size", 1),
        ):
            value = getattr(self, field)
            if value is not None and value < least:
                faults.append(f"data.{field}: must be {least} or more, not {value}.")
        if not 0 < self.train_fraction <= 1:
            faults.append(f"data.train_fraction: must be above 0 and at most 1, not {self.train_fraction}.")
        if self.train_examples is not None and self.train_fraction != 1:
            faults.append("data.train_examples: give this or data.train_fraction, not both.")
        if self.train_rest and self.train_examples is None and self.train_fraction == 1:
            faults.append("data.train_rest: nothing is left out. Set data.train_examples or data.train_fraction.")
        if self.rotated is not None and (self.augment != "none" or self.name in ("caltech101", "image_folder")):
            faults.append("data.rotated: goes with images in memory and augment: none, since one channel is the time.")
        if self.name == "npz" and self.path is None:
            faults.append("data.path: the npz dataset needs the path of its file.")
        # All faults in one message: a recipe is mended in one go.
        faults += self._faults_of_kind()
        if faults:
            raise DataError("\n".join(faults))

    def _faults_of_kind(self) -> list[str]:
        """Return what does not go together with texts, with masks, or with images."""
        faults = []
        if self.text is not None and self.name not in TEXT_NAMES:
            faults.append(f"data.text: is for datasets of texts, and {self.name!r} is not one.")
        if self.scenes is not None and self.name not in ("digit_scenes", "digit_boxes"):
            faults.append(f"data.scenes: is for digit_scenes and digit_boxes, and the data are {self.name!r}.")
        if self.name in _LABELLED_IMAGES or self.name not in DATASET_NAMES:
            return faults
        what = "texts" if self.name in TEXT_NAMES else "pictures with masks or boxes"
        # A field counts as set where it differs from its default.
        plain, fields = DataConfig(self.name), _OF_IMAGES if self.name in TEXT_NAMES else (*_OF_IMAGES, "classes")
        return faults + [
            f"data.{field}: is for images with one label, and {self.name!r} is a dataset of {what}. Leave it out."
            for field in fields
            if getattr(self, field) != getattr(plain, field)
        ]
