"""How all pictures look: images side by side in one of them, and the style of Matplotlib's figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TILE_SIZE = 64  # Images are enlarged to about this many pixels, so that 8x8 images can be seen.
GAP = 4  # White pixels between them, and around all of them.

# Pictures stand on light and on dark pages. A transparent one would need text that can be read on both, and there is no
# colour with a contrast of 4.5 to white and to the dark page of the documentation as well. Therefore pictures are white
# and opaque, as the gaps of `tile` are. Pages draw a soft frame around them (docs/pages.css, examples/run_report.py).
BACKGROUND = "#ffffff"
TEXT = "#24292f"
FRAME = "#8c959f"
# Of lines and points: those of Okabe and Ito, "Color universal design" (2008), that have a contrast of 3 to white.
# They differ for people who are colour-blind, and so do the values of the colour map "viridis".
COLORS = ("#0072b2", "#d55e00", "#009e73")
PAGE_WIDTH = 8.  # Inches: the width of a figure of several panels.

# For `matplotlib.rcParams.update` or `matplotlib.rc_context`. The font comes with Matplotlib.
STYLE = {
    "figure.figsize": (PAGE_WIDTH * 2. / 3., PAGE_WIDTH * 5. / 12.),
    "figure.dpi": 150.,
    "savefig.dpi": "figure",
    "figure.facecolor": BACKGROUND,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.,
    "figure.titlesize": 9.,
    "axes.titlesize": 9.,
    "axes.labelsize": 9.,
    "xtick.labelsize": 8.,
    "ytick.labelsize": 8.,
    "legend.fontsize": 8.,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "xtick.color": FRAME,
    "ytick.color": FRAME,
    "axes.edgecolor": FRAME,
    "axes.facecolor": BACKGROUND,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
    "lines.linewidth": 1.3,
    "lines.markersize": 5.,
    "legend.frameon": False,
    "image.cmap": "viridis",
}


def tile(rows: Sequence[np.ndarray]) -> np.ndarray:
  """Rows of images as one picture, enlarged pixel by pixel, with white gaps.

  #### Example

  ```python
  import numpy as np
  from tfp_glow import pictures

  pictures.tile([np.zeros([5, 8, 8, 1], np.uint8), np.zeros([3, 8, 8, 1], np.uint8)])  # [140, 344, 1]
  ```

  Args:
    rows: List of uint8 arrays `[n, H, W, C]`; the numbers `n` of images may differ.

  Returns:
    uint8 array `[height, width, C]`.

  Raises:
    ValueError: if `rows` is empty, or its images differ in size.
    TypeError: if the images are not uint8.
  """
  rows = [np.asarray(row) for row in rows]
  if not rows or any(row.ndim != 4 or row.shape[1:] != rows[0].shape[1:] for row in rows):
    raise ValueError("`rows` must be arrays [n, H, W, C] of images of one size. "
                     f"Received: shapes {[row.shape for row in rows]}")
  if any(row.dtype != np.uint8 for row in rows):
    of_more = " (of `n` bits: `(images >> (n - 8)).astype(np.uint8)`)" * any(row.dtype == np.uint16 for row in rows)
    raise TypeError(f"`rows` must be uint8{of_more}. Received: {sorted({row.dtype.name for row in rows})}")
  height, width, num_channels = rows[0].shape[1:]
  zoom = max(1, TILE_SIZE // height)
  height, width = zoom * height, zoom * width
  picture = np.full([GAP + (height + GAP) * len(rows), GAP + (width + GAP) * max(map(len, rows)), num_channels], 255,
                    np.uint8)
  for i, row in enumerate(rows):
    for j, image in enumerate(row):
      top, left = GAP + i * (height + GAP), GAP + j * (width + GAP)
      picture[top:top + height, left:left + width] = image.repeat(zoom, axis=0).repeat(zoom, axis=1)
  return picture
