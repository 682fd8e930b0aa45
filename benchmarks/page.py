"""Measures the response times of the web page of `examples/serve.py`; prints a table of docs/serving.md.

  python benchmarks/page.py output/saved_model --images output/test_images --directions output/edits/directions.npz

The server runs in a separate process. This one sends the page's requests over HTTP, all kinds in turn, one at a time.
Images are samples of the model, and an edit moves all sliders. Options are those of serve.py, --calls and --save. With
--save the model must come first, in the output folder of `examples/train_glow.py`; its data give the table its name.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import time

import results

_SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "serve.py"
_HOST = "127.0.0.1"
_ANSWERS = {"/api/model": "names and 24 images", "/api/image": "bits of an image", "/api/edit": "all sliders",
            "/api/interpolate": "9 images", "/api/sample": "16 images"}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--calls", type=int, default=50, help="requests of each kind (%(default)s)")
  results.add_save(parser)
  args, options = parser.parse_known_args()
  data = _data_of(options, parser) if args.save else None
  with _serving(options) as connection:
    questions = make_questions(connection)
    times = {name: [] for name in questions}
    for _ in range(args.calls):
      for name, body in questions.items():
        start = time.perf_counter()
        ask(connection, name, body)
        times[name].append(1e3 * (time.perf_counter() - start))
  table = results.Table(f"{args.calls} calls of each", "median, ms", "worst, ms")
  for name, found in times.items():
    table.add(f"`{name}`", f"{statistics.median(found):.0f}", f"{max(found):.0f}")
  results.save(args, f"page_{data}", ("", data),
               [[f"{name}: {_ANSWERS[name.strip('`')]}", f"{median} ({worst})"] for name, median, worst in table.rows])


def _data_of(options, parser):
  """The data that the model was trained on."""
  path = pathlib.Path(options[0] if options else "").parent / "results.json"
  if not path.is_file():
    parser.error(f"--save needs a model in the output folder of examples/train_glow.py. Received: {options}")
  return pathlib.Path(json.loads(path.read_text(encoding="utf-8"))["settings"]["data"]).stem


@contextlib.contextmanager
def _serving(options):
  """A connection to a server that runs until the block ends."""
  with socket.create_server((_HOST, 0)) as free:
    port = free.getsockname()[1]
  command = [sys.executable, _SCRIPT, *options, f"--host={_HOST}", f"--port={port}"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    try:
      if not process.stdout.readline():  # The line with its address.
        sys.exit(f"{' '.join(map(str, command))} failed.")  # The server has printed the reason.
      with contextlib.closing(http.client.HTTPConnection(_HOST, port)) as connection:
        yield connection
    finally:
      process.terminate()


def make_questions(connection):
  """A dict from paths of the server to the data that is sent there; `None` for none."""
  known = ask(connection, "/api/model", None)
  label = {"label": 0} if known["classes"] else {}
  sample = {"temperature": 0.7, "seed": 0, **label}
  first, second, *_ = ask(connection, "/api/sample", sample)["images"]
  return {"/api/model": None, "/api/image": {"image": first, **label},
          "/api/edit": {"image": first, "strengths": dict.fromkeys(known["directions"], 0.5), **label},
          "/api/interpolate": {"first": first, "second": second, **label}, "/api/sample": sample}


def ask(connection, path, body):
  if body is None:
    connection.request("GET", path)
  else:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
  answer = connection.getresponse()
  content = answer.read()
  if answer.status != http.client.OK:
    sys.exit(f"{path} failed: {content[-2000:]!r}")
  return json.loads(content)


if __name__ == "__main__":
  main()
