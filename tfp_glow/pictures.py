"""Pictures of many images, and one style of Matplotlib's figures.

`STYLE` are parameters of Matplotlib, which the figures of this package, its examples and its documentation share:

```python
import matplotlib
from tfp_glow import pictures

matplotlib.rcParams.update(pictures.STYLE)
```

Figures have a white background of their own, so that they can be read on light and on dark pages. `COLORS` are those
of lines, which colour-blind people can tell apart, `TEXT` and `FRAME` those of text and of axes. `PAGE_WIDTH` is the
width in inches of a figure of several panels. `TILE_SIZE` and `GAP` are pixels of `tile`.
"""

from tfp_glow.data.pictures import COLORS, FRAME, GAP, PAGE_WIDTH, STYLE, TEXT, TILE_SIZE, tile

__all__ = ["COLORS", "FRAME", "GAP", "PAGE_WIDTH", "STYLE", "TEXT", "TILE_SIZE", "tile"]
