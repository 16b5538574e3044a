"""Small vision models of Transformers with random weights, and their processors."""

from pathlib import Path


def vit(directory: Path) -> Path:
    """A ViT for images of 16×16 pixels and three labels."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=16, patch_size=4, num_labels=3, **sizes)
    ViTForImageClassification(config).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6]).save_pretrained(directory)
    return directory


def resnet(directory: Path) -> Path:
    """A ResNet, whose processor crops what it has resized."""
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(directory)
    ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.75).save_pretrained(directory)
    return directory
