"""Networks by name, one family a file; each builder takes the input's shape and the number of classes."""

from ticketlab.models import conv, har, lenet, resnet, vgg
from ticketlab.models.registry import models

__all__ = ["conv", "har", "lenet", "models", "resnet", "vgg"]
