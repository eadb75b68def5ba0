"""A tiny COCO data set on disk, which each test spoils in its own way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Document = dict[str, Any]
WIDTH, HEIGHT = 10, 8


@pytest.fixture
def document() -> Document:
    """One image of 10 × 8 (width × height), one square of 4 × 4 at (2, 1), two categories with a gap."""
    return {
        "images": [{"id": 5, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {
                "id": 11,
                "image_id": 5,
                "category_id": 7,
                "bbox": [2, 1, 4, 4],
                "area": 16,
                "iscrowd": 0,
                "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]],
            }
        ],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Document], Path]:
    """Writes a document beside its image, and gives its path."""
    Image.fromarray(np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)).save(tmp_path / "a.png")

    def save(content: Document) -> Path:
        path = tmp_path / "data.json"
        path.write_text(json.dumps(content))
        return path

    return save
