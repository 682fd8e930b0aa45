"""Four logical CPU devices, for the tests of `tf.distribute`; must happen before TensorFlow starts."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4)


@pytest.fixture(scope="session")
def one_device():
  """What one device makes of `distributed_runs.train`: the model and its history."""
  import distributed_runs
  return distributed_runs.train(tf.distribute.get_strategy())


@pytest.fixture(scope="session")
def grey_path(tmp_path_factory):
  """A SavedModel of small grey images."""
  import served_models
  return served_models.export_grey(tmp_path_factory.mktemp("grey"))


@pytest.fixture(scope="session")
def colour_path(tmp_path_factory):
  """A class-conditional SavedModel of wide colour images."""
  import served_models
  return served_models.export_colour(tmp_path_factory.mktemp("colour"))
