"""The page on serving: its programs run as users run them, against a substitute for TensorFlow Serving."""

import concurrent.futures
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf

grpc = pytest.importorskip("grpc", reason="an extra, `warm_up`")
pytest.importorskip("tensorflow_serving.apis", reason="an extra, `warm_up`")

from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc  # noqa: E402

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "serving.md").read_text()
EXPORT, LOAD, CALL = re.findall(r"^```py\n(.*?)^```", PAGE, re.M | re.S)
DOCKER, CURL, *_ = (
    shlex.split(code.replace("\\\n", " ")) for code in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S))
pytestmark = pytest.mark.slow


class _StandIn(prediction_service_pb2_grpc.PredictionServiceServicer):
  """Passes on the SavedModel's answers, as TensorFlow Serving does."""

  def __init__(self, name, signatures):
    self._name = name
    self._signatures = signatures

  def Predict(self, request, context):
    assert request.model_spec.name == self._name
    inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
    response = predict_pb2.PredictResponse()
    for name, tensor in self._signatures[request.model_spec.signature_name](**inputs).items():
      response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor))
    return response


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where the first program of the page was run."""
  path = tmp_path_factory.mktemp("serving")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(path)
    exec(compile(EXPORT, "page", "exec"), {"__name__": "page"})
  return path


@pytest.fixture(scope="module")
def signatures(folder):
  options = dict(zip(DOCKER, DOCKER[1:]))
  source, target = options["-v"].split(":")
  assert options["-e"] == f"MODEL_NAME={target.removeprefix('/models/')}"  # TensorFlow Serving looks there.
  versions = [path for path in (folder / source.removeprefix("$PWD/")).iterdir() if path.name.isdigit()]
  return tf.saved_model.load(str(max(versions, key=lambda path: int(path.name)))).signatures


def _run(code, folder):
  names = {"__name__": "page"}
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    exec(compile(code, "page", "exec"), names)
  return names


def test_without_a_server(folder):
  assert _run(LOAD, folder)["bits"].shape == (4,)


def test_rest(signatures):
  body = json.loads(CURL[CURL.index("-d") + 1])
  assert CURL[-1].endswith("/v1/models/glow:predict") and body.keys() == {"signature_name", "inputs"}
  signature = signatures[body["signature_name"]]
  # TensorFlow Serving takes the dtypes from the signature.
  specs = signature.structured_input_signature[1]
  answer = signature(**{name: tf.constant(value, specs[name].dtype) for name, value in body["inputs"].items()})
  assert answer["images"].shape == (4, 8, 8, 1)


def test_grpc(signatures, folder):
  server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
  prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_StandIn("glow", signatures), server)
  port = server.add_insecure_port("localhost:0")
  server.start()
  try:
    assert CALL.count("localhost:8500") == 1
    names = _run(CALL.replace("localhost:8500", f"localhost:{port}"), folder)
  finally:
    server.stop(None)
  expected = signatures["log_prob"](images=tf.constant(names["images"]))["bits_per_dim"]
  np.testing.assert_allclose(names["bits_per_dim"], expected, rtol=1e-6)
