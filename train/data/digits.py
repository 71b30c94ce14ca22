"""1,797 handwritten digits of 8x8 pixels, shipped with the package: no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49 (CC BY 4.0); the test set, as scikit-learn's
load_digits has it.
"""

from importlib.resources import files

import numpy as np
from datasets import Dataset


def digits() -> Dataset:
    """Columns: image (8, 8) float32 in [0, 1], label int64 in 0..9."""
    with (files("train.data") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        # scikit-learn's pixels go from 0 to 16.
        images = arrays["images"].astype(np.float32) / 16
        return Dataset.from_dict({"image": images, "label": arrays["labels"].astype(np.int64)})
