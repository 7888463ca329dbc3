"""The 20 superclasses of CIFAR-100.

The table is the one published at https://www.cs.toronto.edu/~kriz/cifar.html, with the class names as the data files
spell them. Fine and coarse classes are numbered in alphabetical order of their names, as in the files.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from reuse_algos.errors import DataError

COARSE_TO_FINE = MappingProxyType(
    {
        "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
        "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
        "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
        "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
        "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
        "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
        "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
        "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
        "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
        "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
        "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
        "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
        "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
        "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
        "people": ("baby", "boy", "girl", "man", "woman"),
        "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
        "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
        "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
        "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
        "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
    }
)
"""Superclass -> its five classes."""

CIFAR100_COARSE_NAMES = tuple(sorted(COARSE_TO_FINE))
"""Names of the 20 superclasses, in the order of their numbers."""

CIFAR100_FINE_NAMES = tuple(sorted(name for names in COARSE_TO_FINE.values() for name in names))
"""Names of the 100 classes, in the order of their numbers."""

_COARSE_OF_FINE = torch.tensor(
    [
        next(number for number, coarse in enumerate(CIFAR100_COARSE_NAMES) if fine in COARSE_TO_FINE[coarse])
        for fine in CIFAR100_FINE_NAMES
    ]
)


def coarse_labels(labels_N: Tensor) -> Tensor:
    """Return superclass numbers (int64 ``[N]``, 0 to 19) of CIFAR-100's fine labels (int64 ``[N]``, 0 to 99).

    Raises:
        DataError: If a label is outside 0 to 99.
    """
    if len(labels_N) and not (int(labels_N.min()) >= 0 and int(labels_N.max()) < len(CIFAR100_FINE_NAMES)):
        raise DataError(
            "Coarse labels are made from CIFAR-100's 100 fine labels, but there are labels from "
            f"{int(labels_N.min())} to {int(labels_N.max())}. Use data.labels: fine."
        )
    return _COARSE_OF_FINE[labels_N]
