"""The data ``glyphs`` of the library as a file: pictures of characters with the script as the class.

Writes one ``.npz`` file in the layout of Keras, uint8 ``[N, 28, 28]``, a tenth of each class as the test part. The same
file every time.

    python benchmarks/glyphs.py glyphs.npz
"""

from __future__ import annotations

import sys

import numpy as np

from reuse_algos.data.glyphs import SCRIPTS, glyphs_of_scripts


def main(path: str) -> None:
    """Write the file."""
    chosen, labels = glyphs_of_scripts()
    x, y = np.stack([glyph.picture for glyph in chosen]), np.array(labels)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    rank = np.array([(y[:place] == label).sum() for place, label in enumerate(y)])
    test = rank < np.bincount(y)[y] // 10
    np.savez(
        path,
        x_train=x[~test],
        y_train=y[~test],
        x_test=x[test],
        y_test=y[test],
        class_names=np.array([word.title() for word in SCRIPTS]),
    )
    print(f"{path}: {int((~test).sum())} training and {int(test.sum())} test pictures of {len(SCRIPTS)} scripts")


if __name__ == "__main__":
    main(sys.argv[1])
