"""Hybrid models, as in the paper's table 4, scaled down: prints tables of docs/residual_flows.md.

  python benchmarks/hybrid.py                         about half an hour on two cores
  python benchmarks/hybrid.py --data digits --seconds 30

Three flows are compared: a residual flow, affine couplings, and affine couplings with 1x1 convolutions. All have the
same number of parameters (without heads), and heads of the same kind at each of two scales. They are trained for the
same time, with each weight of the likelihood: 0, the inverse of the number of dimensions, and 1. The loss is that
weight times the bits of the image, plus the cross-entropy of its class. Each training is a process with one thread. Its
time begins after one step, so start-up times are not compared. The optimizer is Adam at 0.002 after a warm-up of 50
steps, with batches of 64 images. Accuracy and bits per dimension are those of the first 1,000 images of the test split.
"""

import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import pathlib
import sys

import results

_FLOWS = ("residual", "couplings", "couplings with 1x1 convolutions")
_WEIGHTS = ("0", "1/D", "1")
_NUM_TEST_IMAGES = 1000


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", nargs="+", default=["digits", "mnist.npz"],
                      help="'digits', or the path of an .npz file as Keras has it (%(default)s)")
  parser.add_argument("--seconds", type=float, default=120., help="seconds of each training (%(default)s)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("hybrid.json"),
                      help="file of the numbers, written after each training (%(default)s)")
  results.add_save(parser)
  args = parser.parse_args()
  for data in args.data:
    if data != "digits" and not pathlib.Path(data).is_file():
      parser.error(f"--data must be 'digits' or files. Received: {data}")
  found = train_all(list(itertools.product(args.data, _FLOWS, _WEIGHTS)), args)
  for data in args.data:
    _show_table(data, args.seconds, found).save(args, f"hybrid_{pathlib.Path(data).stem}")


def train_all(settings, args):
  """The results of each setting."""
  os.environ.update(OMP_NUM_THREADS="1", TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1",
                    TF_CPP_MIN_LOG_LEVEL="3")
  context = multiprocessing.get_context("spawn")
  found = {}
  with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), context, max_tasks_per_child=1) as pool:
    futures = {pool.submit(_train, *setting, args.seconds, args.seed): setting for setting in settings}
    for future in concurrent.futures.as_completed(futures):
      found[futures[future]] = future.result()
      print(f"  {len(found)} of {len(settings)}: {futures[future]}: {future.result()}", file=sys.stderr, flush=True)
      args.output.write_text(json.dumps([{"setting": key, **value} for key, value in found.items()], indent=1))
  return found


def _train(data, flow, weight, seconds, seed):
  """Trains one model; returns a dict of its results."""
  import keras
  import tensorflow as tf

  import tfp_glow

  images = lambda split: tfp_glow.data.load_images(data, split, batch_size=64, with_labels=True, seed=seed)
  shape = tuple(images("test").element_spec[0].shape[1:])
  num_dims = shape[0] * shape[1] * shape[2]
  model = tfp_glow.FlowModel(
      _make_flow(flow, shape, seed), num_bits=4 if data == "digits" else 8, seed=seed,
      classifier=tfp_glow.ScaleClassifier(10, 32, seed=seed),
      likelihood_weight={"0": 0., "1/D": 1. / num_dims, "1": 1.}[weight])
  schedule = keras.optimizers.schedules.CosineDecay(0., 1, alpha=1., warmup_target=2e-3, warmup_steps=50)
  model.compile(keras.optimizers.Adam(schedule, beta_2=0.99, global_clipnorm=100.))
  train = images("train").repeat()
  model.fit(train, steps_per_epoch=1, epochs=1, verbose=0)
  model.fit(train.skip(1), steps_per_epoch=10**6, verbose=0, callbacks=[tfp_glow.callbacks.TimeLimit(seconds)])
  test = images("test").unbatch().take(_NUM_TEST_IMAGES).batch(100)
  results = model.evaluate(test, return_dict=True, verbose=0)
  return {"accuracy": float(results["accuracy"]), "bits_per_dim": float(results["bits_per_dim"]),
          "cross_entropy": float(results["cross_entropy"]), "steps": int(model.optimizer.iterations.numpy()),
          "num_parameters": int(sum(tf.size(v) for v in model.distribution.trainable_variables))}


def _make_flow(flow, shape, seed):
  import tfp_glow

  residual = tfp_glow.ResidualFlowBijector(shape, num_scales=2, num_blocks_per_scale=2, num_hidden=32,
                                           num_dense_blocks=0, seed=seed)
  if flow == "residual":
    return residual
  permutation = "conv1x1" if flow.endswith("convolutions") else "shuffle"
  make = lambda width: tfp_glow.GlowBijector(shape, 2, 4, width, permutation=permutation, seed=seed)
  return make(_width_of_as_many_parameters(make, _size(residual)))


def _width_of_as_many_parameters(make, aim):
  """The width that gives a number of parameters, which is a polynomial of second degree of the width."""
  import numpy as np

  widths = (4, 8, 12)
  polynomial = np.polynomial.Polynomial.fit(widths, [_size(make(width)) for width in widths], 2)
  return min(range(1, 200), key=lambda width: abs(polynomial(width) - aim))


def _size(flow):
  return sum(v.shape.num_elements() for v in flow.trainable_variables)


def _show_table(data, seconds, found):
  print()
  table = results.Table(f"{pathlib.Path(data).stem}, {seconds:g} s", *(f"weight {weight}" for weight in _WEIGHTS))
  for flow in _FLOWS:
    cells = []
    for weight in _WEIGHTS:
      of_this = found[data, flow, weight]
      bits = "" if weight == "0" else f", {of_this['bits_per_dim']:.2f} bits per dim"
      cells.append(f"{100. * of_this['accuracy']:.1f} %{bits}, {of_this['steps']} steps")
    table.add(f"{flow}, {found[data, flow, '1']['num_parameters']:,} parameters", *cells)
  return table


if __name__ == "__main__":
  main()
