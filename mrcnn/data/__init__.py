"""Data sets of images with instances: reading and checking them, augmentation, batches."""

from mrcnn.data.dataset import InstanceDataset, Sample
from mrcnn.data.embedded import nuclei_dataset
from mrcnn.data.images import ImageError, check_image, list_images, read_image
from mrcnn.data.loader import batches
from mrcnn.data.problems import DatasetError, Problem, write_problems
from mrcnn.data.sources import open_dataset
from mrcnn.data.summary import Counts, count_objects, summarize
from mrcnn.data.transforms import Augmentation, augment

__all__ = [
    "Augmentation",
    "Counts",
    "DatasetError",
    "ImageError",
    "InstanceDataset",
    "Problem",
    "Sample",
    "augment",
    "batches",
    "check_image",
    "count_objects",
    "list_images",
    "nuclei_dataset",
    "open_dataset",
    "read_image",
    "summarize",
    "write_problems",
]
