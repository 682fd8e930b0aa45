"""The training curve."""

from __future__ import annotations

import csv
import functools
import os

from tfp_glow._core import files
from tfp_glow.data import pictures
from tfp_glow.training.callbacks.folder_writer import FolderWriter

_PICTURE, _TABLE = "bits_per_dim.png", "bits_per_dim.csv"
_CURVES = {"bits_per_dim": "training", "val_bits_per_dim": "validation"}
# Fixed margins: to compute them takes as long as the drawing itself.
_MARGINS = {"left": 0.11, "right": 0.99, "bottom": 0.13, "top": 0.98}
_STYLE = {**pictures.STYLE, "figure.constrained_layout.use": False,
          **{f"figure.subplot.{side}": share for side, share in _MARGINS.items()}}


class BitsPerDimCurve(FolderWriter):
  """Draws bits per dimension of all epochs so far, of training and validation, after each epoch.

  `bits_per_dim.png` is the curve, `bits_per_dim.csv` holds its numbers. A resumed run (`initial_epoch`) keeps the
  earlier epochs; a run from the beginning replaces them.

  Training's numbers are means over an epoch, during which the weights improve. They lag behind validation's by about
  half an epoch. With several workers (`tf.distribute`) only the chief draws.

  A drawing takes 0.07 s of CPU time: 6% of an epoch of 23 steps of the digits (2 levels of 8 steps, 64 wide).

  #### Example

  ```python
  import tempfile
  import tfp_glow

  glow = tfp_glow.GlowBijector(output_shape=(8, 8, 1), num_glow_blocks=1, num_steps_per_block=2, num_hidden=8)
  model = tfp_glow.FlowModel(glow, num_bits=4)
  model.compile("adam")
  train, validation = (tfp_glow.data.load_images("digits", split, batch_size=256) for split in ("train", "validation"))
  curve = tfp_glow.callbacks.BitsPerDimCurve(tempfile.mkdtemp())
  model.fit(train, validation_data=validation, epochs=2, callbacks=[curve])
  ```
  """

  def __init__(self, folder: str | os.PathLike):
    """Creates the callback; it should come before a `TrainingState`.

    Args:
      folder: Where the two files go; created if missing.

    Raises:
      ImportError: if Matplotlib is not installed.
    """
    super().__init__(folder)
    # One figure for all drawings: figures hold megabytes in cycles, which Python may not free for hundreds of epochs.
    self._in_style, self._figure = _figure()
    with self._in_style():
      self._axes = self._figure.subplots()
      self._axes.set(xlabel="epoch", ylabel="bits per dimension")
      self._axes.xaxis.get_major_locator().set_params(integer=True)
      self._lines = {key: self._axes.plot([], [], marker=".", label=label)[0] for key, label in _CURVES.items()}
    self._epochs = []  # One dict per epoch, with the available values of `_CURVES`.

  def _begin(self, num_epochs):
    self._epochs = [row for row in self._read() if row["epoch"] <= num_epochs]
    self._save()

  def _write(self, num_epochs, logs):
    self._epochs.append({"epoch": num_epochs, **{key: float(logs[key]) for key in _CURVES if key in logs}})
    self._save()

  def _read(self):
    path = self._folder / _TABLE
    if not path.exists():
      return []
    try:
      with path.open(newline="", encoding="utf-8") as file:
        return [{"epoch": int(row["epoch"]), **{key: float(row[key]) for key in _CURVES if row[key]}}
                for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
      raise ValueError(f"`folder` must hold the table of an earlier run in {_TABLE}, or none, but it cannot be read "
                       f"({type(error).__name__}: {error}). Received: {self._folder}") from error

  def _save(self):
    with files.written_as_a_whole(self._folder / _TABLE) as path:  # A killed run resumes from it.
      with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["epoch", *_CURVES])
        writer.writeheader()
        writer.writerows(self._epochs)
    self._draw()

  def _draw(self):
    for key, line in self._lines.items():
      rows = [row for row in self._epochs if key in row]
      line.set_data([row["epoch"] for row in rows], [row[key] for row in rows])
    self._axes.relim()
    self._axes.autoscale_view()
    drawn = [line for line in self._lines.values() if len(line.get_xdata())]
    with self._in_style():
      if drawn:
        self._axes.legend(handles=drawn)
      self._figure.savefig(self._folder / _PICTURE)


def _figure():
  """A function that enters the style, and an empty figure that needs no display."""
  try:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError("`BitsPerDimCurve` needs Matplotlib, which is not installed: pip install matplotlib. "
                      f"Received: {error}") from error
  in_style = functools.partial(matplotlib.rc_context, _STYLE)
  with in_style():
    figure = Figure()
  FigureCanvasAgg(figure)  # Without it, `savefig` would make a canvas each time.
  return in_style, figure
