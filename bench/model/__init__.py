"""Measurements of the whole model beside torchvision's."""
