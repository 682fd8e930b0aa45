"""Input pipelines: batches of uint8 images from scikit-learn, TFDS or a folder."""

from tfp_glow.data.load import load_images, num_classes

__all__ = ["load_images", "num_classes"]
