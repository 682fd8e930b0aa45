"""Prepares TFDS's data sets: once per machine, and not at all if it cannot succeed."""

import gzip
import hashlib
import io
import os
import pathlib
import tempfile
import urllib.parse

from tfp_glow.data.source import require

_CONNECT_TIMEOUT_SECONDS = 10

_DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")
# SHA-256 of the decompressed files: Debian's gzip headers differ.
_FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def prepare(builder, name):
  """Downloads and prepares a data set, unless that is done or cannot succeed.

  Files that a user has put into `manual_folder` are not downloaded. If there are none and no host answers, nothing is
  done: TFDS would retry for minutes, but its reader reports missing files at once. A preparation that fails or is
  interrupted leaves nothing that TFDS takes for a prepared data set.

  Args:
    builder: `tfds.core.DatasetBuilder`.
    name: The user's name for the data set.

  Raises:
    ImportError: if a library for reading its files is missing.
    RuntimeError: if TFDS fails; the message names the folder for files downloaded by hand.
  """
  if builder.is_prepared():
    return
  if os.path.exists(builder.data_dir):
    raise RuntimeError(f"`name_or_folder`: the copy of {name!r} in {builder.data_dir} is incomplete; remove it. "
                       f"Received: name_or_folder={name!r}")
  if builder.name == "lsun":
    _read_lsun_by_lmdb(builder, name)
  try:
    if builder.name == "fashion_mnist" and _DEBIAN_FASHION_MNIST.is_dir():
      _prepare_debian_fashion_mnist(builder)
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS or _is_in_manual_folder(builder) or _host_answers(builder):
      builder.download_and_prepare()
  except Exception as error:
    by_hand = f"It takes files that were downloaded by hand from {manual_folder(builder)}"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
      instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
      by_hand = f"Its files must be downloaded by hand and put into {manual_folder(builder)}; TFDS says: {instructions}"
    raise RuntimeError(f"`name_or_folder`: TFDS could not prepare {name!r} in {builder.data_dir}: {error}. {by_hand}. "
                       f"Received: name_or_folder={name!r}") from error


def manual_folder(builder):
  """The folder where TFDS looks for files downloaded by hand, under the names that they have on their hosts."""
  return pathlib.Path(builder.data_dir_root) / "downloads" / "manual"


def _is_in_manual_folder(builder):
  return any(info.filename and (manual_folder(builder) / info.filename).exists()
             for info in (builder.url_infos or {}).values())


def _host_answers(builder):
  """Whether one of the hosts of the files answers. True if TFDS does not know them before it downloads."""
  import requests  # TFDS downloads with it, so proxies are the same.
  urls = [urllib.parse.urlsplit(url) for url in builder.url_infos or ()]
  hosts = {f"{url.scheme}://{url.netloc}" for url in urls if url.scheme in ("http", "https")}
  for host in sorted(hosts):
    try:
      requests.head(host, timeout=_CONNECT_TIMEOUT_SECONDS)
      return True
    except requests.RequestException:
      continue
  return not hosts


def _prepare_debian_fashion_mnist(builder):
  """Lets TFDS prepare Fashion-MNIST from the files that Debian installs."""
  for file_name, expected in _FASHION_MNIST_SHA256.items():
    path = _DEBIAN_FASHION_MNIST / file_name
    with gzip.open(path) as file:
      actual = hashlib.sha256(file.read()).hexdigest()
    if actual != expected:
      raise ValueError(f"{path} is not the original file: the SHA-256 of its decompressed bytes must be {expected}, "
                       f"and is {actual}")
  builder.URL = _DEBIAN_FASHION_MNIST.as_uri() + "/"  # For this builder only; the class keeps the network's URL.
  with tempfile.TemporaryDirectory() as download_dir:  # For TFDS's copies, which are not needed later.
    builder.download_and_prepare(download_dir=download_dir)


def _read_lsun_by_lmdb(builder, name):
  """Makes TFDS read LSUN's databases by lmdb: its own reader, tensorflow_io, does not work with TensorFlow 2.21."""
  lmdb = require("lmdb", "LSUN", name)  # Now, not after the download.

  def generate_examples(extracted_dir, file_path):
    with (lmdb.open(os.path.join(extracted_dir, file_path), readonly=True, lock=False) as environment,
          environment.begin() as transaction):
      for index, (key, jpeg) in enumerate(transaction.cursor()):
        yield index, {"id": key.decode(), "image": io.BytesIO(jpeg)}

  builder._generate_examples = generate_examples  # For this builder only.
