"""What torchvision, PyTorch and pycocotools give where this library has an operation or a model."""
