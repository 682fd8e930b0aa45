"""Four logical CPU devices, for the tests of `tf.distribute`; must happen before TensorFlow starts.

And what keeps the memory of the whole suite small: the order of its files, and what is freed after each.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# For processes that start after this: the C library's arena of each thread keeps what was freed in it.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")

import contextlib
import ctypes
import gc
import itertools
import pathlib
import shutil
import types
import warnings

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4)

# The files that take longest, longest first; otherwise one of two processes ends long before the other.
_FIRST = ("test_conformance", "test_residual_flow", "test_workers", "test_all_gradients")


def pytest_configure(config):
  config.option.loadscopereorder = False  # Of pytest-xdist, which would begin with the files of most tests.


def pytest_collection_modifyitems(items):
  rank = {name: index for index, name in enumerate(_FIRST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(_FIRST)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
  """Layers of Keras without a seed start from the same weights in each run."""
  keras.utils.set_random_seed(0)


def pytest_collection_finish():
  """The objects of the imports stay to the end, so the garbage collector need not walk through them again."""
  gc.collect()
  gc.freeze()


_MEGABYTES_TO_CLEAN_UP = 150
_megabytes_before = 0


def _megabytes():
  """The memory that this process occupies, if the system tells it."""
  with contextlib.suppress(OSError):
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) // 256  # Pages of 4 kB.
  return 0


def _clean_up():
  """Frees what nobody needs: graphs are full of cycles, and the C library keeps freed memory."""
  gc.collect()
  c_library = ctypes.CDLL(None)
  if hasattr(c_library, "malloc_trim"):
    c_library.malloc_trim(0)


def pytest_runtest_logfinish():
  """Cleans up after a test with large graphs, so that they are gone before the next test."""
  global _megabytes_before
  if _megabytes() > _megabytes_before + _MEGABYTES_TO_CLEAN_UP:
    _clean_up()
    _megabytes_before = _megabytes()


@pytest.fixture(scope="module", autouse=True)
def what_a_file_gives_back(request):
  """Frees models and graphs that its caches, Keras and TensorFlow hold, and memory that the C library keeps."""
  yield
  for value in vars(request.module).values():
    # Only its own caches: those of helpers hold objects that may exist once only, such as replicas.
    if hasattr(value, "cache_clear") and value.__module__ == request.module.__name__:
      value.cache_clear()
  keras.backend.clear_session(free_memory=False)
  _clean_up()


@pytest.fixture(scope="module")
def unoptimized_graphs():
  """For many graphs that run once or twice: optimizing them takes longer than running them."""
  tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
  yield
  tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@pytest.fixture
def eagerly():
  """A few eager steps of a tiny model take a third of the time that its graphs take to build."""
  tf.config.run_functions_eagerly(True)
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Even though the `tf.config.experimental_run_functions_eagerly`")
    yield
  tf.config.run_functions_eagerly(False)


@pytest.fixture
def one_layer_glow(monkeypatch):
  """Scripts of this process train the flow of `example_runs` in place of a Glow, because its graphs are small."""
  import example_runs
  monkeypatch.setattr("tfp_glow.GlowBijector", example_runs.flow)


@pytest.fixture(scope="session")
def one_device():
  """The model and the history of `distributed_runs.train` on one device."""
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


@pytest.fixture(scope="module", params=["scan", "chain", *(pytest.param(name, marks=pytest.mark.slow)
                                                         for name in ("glow", "invert"))])
def shared_flow(request):
  """One of `flows_of_two_weights`."""
  import flows_of_two_weights
  return flows_of_two_weights.Flow(flows_of_two_weights.FLOWS[request.param])


@pytest.fixture
def flow(shared_flow):
  """The same, with its old weights again for the next test."""
  yield shared_flow
  shared_flow.assign(shared_flow.old)


@pytest.fixture(params=[True, False], ids=["zip", "pickles"])
def write(request, tmp_path):
  """A `torch_pickles.Writer` of each of PyTorch's two file formats."""
  import torch_pickles
  return torch_pickles.Writer(tmp_path, request.param)


@pytest.fixture
def write_zip(tmp_path):
  """A `torch_pickles.Writer` of zip files."""
  import torch_pickles
  return torch_pickles.Writer(tmp_path, True)


@pytest.fixture
def write_pickles(tmp_path):
  """A `torch_pickles.Writer` of rows of pickles, PyTorch's older format."""
  import torch_pickles
  return torch_pickles.Writer(tmp_path, False)


@pytest.fixture
def saved_tables(tmp_path, monkeypatch):
  """A function that reads a table that a benchmark has kept with `--save`, not among the files of the pages."""
  import benchmark_scripts
  results = benchmark_scripts.load("results")
  monkeypatch.setattr(results, "FOLDER", tmp_path / "saved")
  return results.read


@pytest.fixture
def benchmark_clock(monkeypatch):
  """Each time that `benchmarks/measure.py` asks for the time, it is a second later."""
  import benchmark_scripts
  seconds = itertools.count()
  monkeypatch.setattr(benchmark_scripts.load("measure"), "time",
                      types.SimpleNamespace(perf_counter=lambda: float(next(seconds))))


@pytest.fixture(scope="session")
def browser():
  """Debian's Chromium, without a display."""
  webdriver = pytest.importorskip("selenium.webdriver")
  chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
  if not (chromium and driver):
    pytest.skip("needs a browser: apt-get install chromium chromium-driver")
  options = webdriver.ChromeOptions()
  options.binary_location = chromium
  options.add_argument("--headless=new")
  options.add_argument("--disable-dev-shm-usage")  # `/dev/shm` is small in containers.
  if os.geteuid() == 0:
    options.add_argument("--no-sandbox")  # Root cannot use the sandbox.
  with webdriver.Chrome(options, webdriver.ChromeService(driver)) as running:
    yield running
