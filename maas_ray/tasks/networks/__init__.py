"""Networks as torch modules. They import torch, so tasks import them only to build a network."""
