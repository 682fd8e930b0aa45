"""Images that take long to decode are decoded once, as long as there is room for them."""

import threading

# Of one dataset, decoded. 170,000 images of 64x64.
MAX_BYTES = 2 * 2**30


class DecodedOnce:
  """A function from the number of an image to the image, which remembers what it has returned."""

  def __init__(self, decode):
    """Creates it.

    Args:
      decode: Callable, from a Python `int` to an array.
    """
    self._decode = decode
    self._images = {}
    self._num_bytes = 0
    self._lock = threading.Lock()  # Pipelines call it from several threads.

  def __call__(self, index):
    """Returns the image of this number; what does not fit into `MAX_BYTES` is decoded each time."""
    image = self._images.get(index)
    if image is None:
      image = self._decode(index)
      with self._lock:
        if index not in self._images and self._num_bytes + image.nbytes <= MAX_BYTES:
          self._images[index] = image
          self._num_bytes += image.nbytes
    return image
