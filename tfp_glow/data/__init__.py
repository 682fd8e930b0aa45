"""Input pipelines: batches of uint8 or uint16 images from scikit-learn, TFDS, a folder or an `.npz` file."""

from tfp_glow.data.load import load_images, num_classes

__all__ = ["load_images", "num_classes"]
