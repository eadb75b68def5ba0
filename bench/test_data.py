"""Where real data for tests and measurements lies; none of it belongs to this repository."""

import os
from pathlib import Path

TEST_DATA = Path(os.environ.get("MRCNN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
