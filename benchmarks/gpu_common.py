"""What the parts of `gpu.py` that use TensorFlow have in common: models, precisions, images."""

import contextlib
import dataclasses

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_glow

# From a precision to TensorFlow's switch for TensorFloat-32, and Keras' policy.
PRECISIONS = {"float32": (False, "float32"), "TF32": (True, "float32"), "bfloat16": (True, "mixed_bfloat16")}


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The architecture of a Glow, and the size of its batches."""
  image_shape: tuple = (32, 32, 3)
  num_levels: int = 3
  num_steps: int = 32
  num_hidden: int = 512
  batch_size: int = 64

  def __str__(self):
    return f"{self.num_levels} x {self.num_steps}, {self.num_hidden} wide"

  @property
  def num_dims(self):
    """Shape of an image."""
    return int(np.prod(self.image_shape))

  def flops(self):
    """Floating-point operations of a training step's convolutions: the forward pass, and twice as many backward.

    A multiplication counts as one, an addition as another.
    """
    height, width, channels = self.image_shape
    total = 0
    for _ in range(self.num_levels):
      height, width, channels = height // 2, width // 2, channels * 4
      kept, hidden = channels // 2, self.num_hidden
      total += self.num_steps * height * width * (9 * kept * hidden + hidden**2 + 9 * hidden * 2 * kept)
      channels = kept
    return 3 * 2 * self.batch_size * total


PAPER = Architecture()
SMALL = Architecture(num_steps=8, num_hidden=128)
TINY = Architecture(image_shape=(4, 4, 3), num_levels=1, num_steps=2, num_hidden=8, batch_size=4)


def machine():
  """The machine, as TensorFlow describes it."""
  build = tf.sysconfig.get_build_info()
  gpus = tf.config.list_physical_devices("GPU")
  return {"tensorflow": tf.__version__, "keras": keras.__version__, "CUDA": build.get("cuda_version", "none"),
          "cuDNN": build.get("cudnn_version", "none"), "GPUs": len(gpus)}


def has_gpu():
  """Whether TensorFlow sees a GPU."""
  return bool(tf.config.list_physical_devices("GPU"))


def switch(precision):
  """Sets TensorFlow's switch for TensorFloat-32 as a precision needs it."""
  tf.config.experimental.enable_tensor_float_32_execution(PRECISIONS[precision][0])


@contextlib.contextmanager
def policy(precision):
  """A context in which new networks have the Keras policy of a precision."""
  before = keras.config.dtype_policy()
  keras.config.set_dtype_policy(PRECISIONS[precision][1])
  try:
    yield
  finally:
    keras.config.set_dtype_policy(before)


def make_glow(architecture, precision="float32", gradient="autodiff", dtype=None):
  """A `GlowBijector` of this architecture, always from the same seed."""
  with policy(precision):
    return tfp_glow.GlowBijector(
        architecture.image_shape, architecture.num_levels, architecture.num_steps, architecture.num_hidden,
        gradient=gradient, seed=0, dtype=dtype)


def make_model(bijector, num_dims, jit_compile="auto", learning_rate=1e-3):
  """A compiled `FlowModel`."""
  zero = np.zeros([], bijector.dtype.as_numpy_dtype)
  base = tfp.distributions.Sample(tfp.distributions.Normal(zero, zero + 1), [num_dims])
  model = tfp_glow.FlowModel(tfp.distributions.TransformedDistribution(base, bijector))
  model.compile(keras.optimizers.Adam(learning_rate, global_clipnorm=100.), jit_compile=jit_compile)
  return model


def noise_images(architecture, seed=0):
  """A batch of uint8 images of noise."""
  return np.random.default_rng(seed).integers(0, 256, (architecture.batch_size, *architecture.image_shape), np.uint8)


def images(count, image_shape, path=None, seed=0):
  """uint8 images `[count, *image_shape]` from an .npz file, or smooth random ones with a little noise."""
  height, width, channels = image_shape
  rng = np.random.default_rng(seed)
  if path is None:
    coarse = rng.uniform(-60., 316., (count, max(height // 8, 2), max(width // 8, 2), channels))
    values = tf.image.resize(coarse, [height, width], "bicubic").numpy() + rng.normal(0., 3., (count, *image_shape))
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
  found = tfp_glow.data.load_images(path, f"train[:{count}]", count, image_size=height, shuffle=False)
  return np.ascontiguousarray(np.broadcast_to(next(iter(found)), (count, *image_shape)))
