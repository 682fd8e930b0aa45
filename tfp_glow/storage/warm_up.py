"""Requests that TensorFlow Serving sends itself when it loads a SavedModel, because the first ones are slow."""

import os

import numpy as np
import tensorflow as tf

# Where TensorFlow Serving looks for them.
_PATH = ("assets.extra", "tf_serving_warmup_requests")


def import_serving_apis():
  """The modules of `tensorflow-serving-api` that make requests."""
  try:
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
  except ImportError as error:
    raise ImportError('`warm_up_batch_sizes` needs the package tensorflow-serving-api: pip install '
                      f'"tfp_glow[warm_up]". Received: {error}') from error
  return predict_pb2, prediction_log_pb2


def write_requests(apis, functions, sizes, folder):
  """Writes a request to each signature for each number of images; the content of the images does not matter.

  Args:
    apis: What `import_serving_apis` returned.
    functions: Dict from names to `tf.function`s, the signatures.
    sizes: List of Python `int`s, numbers of images.
    folder: Python `str`, folder of the SavedModel.
  """
  predict, prediction_log = apis
  path = os.path.join(folder, *_PATH)
  tf.io.gfile.makedirs(os.path.dirname(path))
  with tf.io.TFRecordWriter(path) as writer:
    for size in sizes:
      for name, function in functions.items():
        request = predict.PredictRequest()
        request.model_spec.signature_name = name
        for spec in function.input_signature:
          request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(_value_of(spec, size)))
        log = prediction_log.PredictionLog(predict_log=prediction_log.PredictLog(request=request))
        writer.write(log.SerializeToString())


def _value_of(spec, size):
  """An argument of the signature, for `size` images."""
  numbers = {"num_samples": size, "temperature": 1., "num_steps": 2}
  shape = [size if length is None else length for length in spec.shape]
  return np.full(shape, numbers.get(spec.name, 0), spec.dtype.as_numpy_dtype)
