"""Its place puts this folder on the path: `operations` serves the folders below too."""
