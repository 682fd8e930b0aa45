"""`report.html`: pictures, numbers and settings of a run on one page, which a browser opens without a server."""

import base64
import html

from tfp_glow import pictures

REPORT = "report.html"

_CAPTIONS = {
    "samples.png": "Samples: a row for each temperature, or for each class",
    "interpolations.png": "Straight lines in latent space between images of the test split",
    "reconstructions.png": "Images of the test split, encoded and decoded",
    "training_curve.png": "Bits per dimension after each epoch",
    "densities.png": "The density of the data, and that of the flow",
}
# Text and page have the reader's colours, light or dark. Pictures stay white in a soft frame, as in the documentation.
_STYLE = f"""
:root {{ color-scheme: light dark; --frame: {pictures.FRAME}66; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; }}
h2 {{ font-size: 1.2rem; }}
figure {{ margin: 2rem 0; }}
figcaption {{ margin-bottom: 0.25rem; }}
img {{ max-width: 100%; height: auto; box-sizing: border-box; background: white; border: 1px solid var(--frame);
  border-radius: 4px; }}
table {{ border-collapse: collapse; }}
td {{ border-top: 1px solid var(--frame); padding: 0.15rem 1.5rem 0.15rem 0; vertical-align: top;
  overflow-wrap: anywhere; }}
"""


def save_report(folder, results, names):
  """Writes `report.html`, with everything that it shows inside.

  Args:
    folder: `pathlib.Path` of the run, with its pictures.
    results: Dict of the numbers of the run, and of its dicts "settings" and "versions".
    names: Names of the pictures to show, if they are in the folder. Names of other files than PNG files are ignored.
  """
  numbers = {name: value for name, value in results.items() if not isinstance(value, dict)}
  figures = "".join(_figure(folder / name) for name in names if name.endswith(".png") and (folder / name).exists())
  title = html.escape(f"{results['settings']['data']}: {results['bits_per_dim']:.3f} test bits per dimension")
  sections = "".join(f"<h2>{heading}</h2>{_table(values)}" for heading, values in (
      ("Numbers", numbers), ("Settings", results["settings"]), ("Versions", results["versions"])))
  (folder / REPORT).write_text(
      '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>{figures}{sections}</body></html>\n",
      encoding="utf-8")


def _figure(path):
  caption = html.escape(_CAPTIONS.get(path.name, path.stem))
  data = base64.b64encode(path.read_bytes()).decode()
  return f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="data:image/png;base64,{data}"></figure>'


def _table(values):
  rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(_text(value))}</td></tr>"
                 for name, value in values.items())
  return f"<table>{rows}</table>"


def _text(value):
  return f"{value:.6g}" if isinstance(value, float) else str(value)
