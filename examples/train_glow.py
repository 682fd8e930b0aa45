"""Trains a Glow on images; leaves its weights, a SavedModel, pictures and numbers in a folder.

The 8x8 digits of scikit-learn, with the default settings; a folder of your own photographs; MNIST from Keras' file:

  python examples/train_glow.py
  python examples/train_glow.py --data ~/photographs --image-size 32 --num-blocks 3 --output photographs
  python examples/train_glow.py --data ~/.keras/datasets/mnist.npz --learning-rate 1e-3 --output mnist

The experiments of the paper, whose settings are in presets.py; options given with them take precedence:

  python examples/train_glow.py --preset cifar10
  python examples/train_glow.py --preset cifar10 --permutation reverse --coupling additive --seed 1

The folder then holds:

  model.weights.h5      the weights with the best bits per dimension of the validation split
  saved_model/          a SavedModel that needs nothing but TensorFlow
  samples.png           samples, a row for each temperature, or for each of ten classes
  interpolations.png    straight lines in latent space between images of the test split
  reconstructions.png   images of the test split, encoded and decoded
  test_images/          these images, each in a file, as examples/serve.py can show them
  training_curve.png    bits per dimension, epoch by epoch
  report.html           all of these pictures, the numbers and the settings on one page, for a browser
  results.json          bits per dimension of the test split, settings, number of parameters, seconds, versions

Ctrl-C ends the training; all of these are then made from the weights so far. A second Ctrl-C ends the program at once.

Until the run has finished, the folder also holds training_state/, written after each epoch, and
best_until_now.weights.h5. The same command resumes from there, however the run was ended, and leads to the same weights
as an uninterrupted run. After SIGTERM, by which clusters announce that they take a machine away, the state is written
after the current batch. The exit code then is 143, or 138 if another worker was lost: start the run again. The folder
cluster/ has scripts for SLURM and Kubernetes.
"""

import atexit
import functools
import json
import math
import os
import pathlib
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time

import keras
import numpy as np
import options
import run_pictures
import run_report
import tensorflow as tf
import tensorflow_probability as tfp
import training_data
import workers

import tfp_glow
from tfp_glow import callbacks, data
from tfp_glow.training import replicas

WEIGHTS, SAVED_MODEL, RESULTS = "model.weights.h5", "saved_model", "results.json"
OUTPUTS = (WEIGHTS, SAVED_MODEL, *run_pictures.FILES, run_report.REPORT, RESULTS)
STATE, BEST_UNTIL_NOW = "training_state", "best_until_now.weights.h5"  # Until the run has finished.

# Settings that may change when a run is resumed.
NOT_OF_THE_RUN = ("output", "overwrite", "time_limit", "data_dir", "strategy", "beside")

OPTIMIZERS = {"adam": keras.optimizers.Adam, "adamax": keras.optimizers.Adamax}

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
# Kubeflow's operator reserves this exit code for programs that want to be started again.
EXIT_WORKER_LOST = 138
# Errors that first show that another worker is gone.
WORKER_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
               tf.errors.DeadlineExceededError)


def main():
  """Parses the command line, trains, saves; returns the exit code."""
  args = parse_args()
  exit_code = run(args, training_data.load_splits, make_model, save_results, OUTPUTS)
  if exit_code == 0:
    print_next_commands(args)
  return exit_code


def run(args, *parts, **kwargs):
  """As `run_alone`, also as one of several workers, if others are lost."""
  try:
    return run_alone(args, *parts, **kwargs)
  except WORKER_LOST as error:
    if args.strategy != "multiworker":
      raise
    print(f"Another worker is gone: {error}\nThe same command on all workers resumes from the last state.",
          file=sys.stderr)
    return EXIT_WORKER_LOST


def run_alone(args, load_splits, make_model, save_results, outputs, jit_compile="auto"):
  """Trains and saves, or resumes an earlier run.

  Args:
    args: The settings.
    load_splits: Callable, from the settings to a dict like that of `training_data.load_splits`.
    make_model: Callable, from the settings and the shape of an image to a `FlowModel`.
    save_results: Callable, like the function `save_results`.
    outputs: Names of the files and folders that it writes.
    jit_compile: See `FlowModel.compile`.

  Returns:
    The exit code.
  """
  start = time.monotonic()
  keras.utils.set_random_seed(args.seed)
  if args.deterministic:
    tf.config.experimental.enable_op_determinism()
  try:
    strategy = make_strategy(args)
    splits = load_splits(args)
    with strategy.scope():
      model = make_model(args, training_data.image_shape(splits["train"]))
      compile_model(model, args, len(splits["train"]), jit_compile)
    state = training_state(args)
    if args.overwrite:
      state.delete()
    first_epoch, best_is_there = state.restore(model), False
    is_resumed = first_epoch > 0 or state.num_batches > 0
    if is_resumed:
      # Now, not after all epochs, if it cannot be read.
      best_is_there = replicas.run_on_chief(lambda: is_loaded(model, args.output / BEST_UNTIL_NOW), strategy)
      state.restore(model)
    prepare_output(args, is_resumed, outputs)
  except (ValueError, OSError, ImportError, RuntimeError) as error:
    print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
    return EXIT_USAGE
  try:
    bits_per_dim, interrupted = train(model, splits, state, first_epoch, best_is_there, args)
  except FloatingPointError as error:
    print(f"{error}\nThe best weights until then, if an epoch was finished, are in {args.output / BEST_UNTIL_NOW}. "
          "With another --learning-rate it is another run: use another --output, or --overwrite.", file=sys.stderr)
    return EXIT_FAILED
  metrics = model.evaluate(training_data.of_workers(splits, strategy, "test"), return_dict=True, verbose=0)
  results = {**{key: float(value) for key, value in metrics.items() if key != "loss"},
             "validation_bits_per_dim": bits_per_dim, "epochs": len(state.history["bits_per_dim"]),
             "training_seconds": round(state.seconds, 1), "interrupted": interrupted}
  save_results(model, splits["test"], state.history, results, start, args)
  if not interrupted or not state.exists():
    state.delete()
    (args.output / BEST_UNTIL_NOW).unlink(missing_ok=True)
  else:
    print("The same command resumes from the last finished epoch; with --overwrite it starts again.")
  return EXIT_INTERRUPTED if interrupted else 0


def make_strategy(args):
  """The strategy. With several workers, only the chief prints, and leaves results in its output folder."""
  if args.strategy == "none":
    return tf.distribute.get_strategy()
  if args.strategy == "mirrored":
    return tf.distribute.MirroredStrategy()
  strategy = tf.distribute.MultiWorkerMirroredStrategy(workers.cluster_resolver())
  if not strategy.extended.should_checkpoint:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")
    args.output = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, args.output)
  return strategy


def parse_args():
  """The settings; argparse ends the program with a message if one of them is invalid."""
  parser = options.make_parser(__doc__)
  args = options.parse(parser)
  check_output(parser, args, OUTPUTS)
  return args


def check_output(parser, args, outputs):
  """Ends the program if the folder has results of another run under these names."""
  if args.output.exists() and not args.output.is_dir():
    parser.error(f"--output must be a folder. Received: {args.output}")
  has_results = any((args.output / name).exists() for name in outputs)
  if has_results and not args.overwrite and not training_state(args).exists():
    parser.error("--output must be a folder without the results of an earlier run; --overwrite replaces them. "
                 f"Received: {args.output}")


def make_model(args, image_shape):
  """A compiled `FlowModel` of a Glow for images of this shape."""
  glow = tfp_glow.GlowBijector(
      output_shape=image_shape, num_glow_blocks=args.num_blocks, num_steps_per_block=args.num_steps,
      num_hidden=args.num_hidden, coupling=args.coupling, permutation=args.permutation, seed=args.seed,
      gradient=args.gradient,
      num_classes=data.num_classes(args.data, args.data_dir) if args.conditional else None)
  return tfp_glow.FlowModel(glow, num_bits=args.num_bits, seed=args.seed, weight_y=args.weight_y)


def compile_model(model, args, steps_per_epoch, jit_compile="auto"):
  """Chooses the optimizer."""
  kwargs = {}
  if args.accumulation_steps > 1:
    kwargs["gradient_accumulation_steps"] = args.accumulation_steps
  if args.ema:
    # Keras averages after each batch, even if several make an update: together their decays are that of one update.
    kwargs.update(use_ema=True, ema_momentum=args.ema**(1. / args.accumulation_steps))
  # The schedule counts batches, too, whether they update the weights or not.
  optimizer = OPTIMIZERS[args.optimizer](
      learning_rate_schedule(args, steps_per_epoch), beta_2=args.beta_2, epsilon=args.epsilon,
      global_clipnorm=args.max_gradient_norm, **kwargs)
  model.compile(optimizer, jit_compile=jit_compile)


def training_state(args):
  """The callback that keeps the state of the run."""
  settings = {key: value for key, value in vars(args).items() if key not in NOT_OF_THE_RUN}
  return callbacks.TrainingState(args.output / STATE, settings)


def prepare_output(args, keep_best_until_now, outputs=OUTPUTS):
  """Makes the folder, and removes the results of an earlier run, so that two runs are not mixed."""
  try:
    (args.output / STATE).mkdir(parents=True, exist_ok=True)  # Made now, so that an error comes before the first epoch.
  except OSError as error:
    raise OSError(f"--output must be a folder that can be created ({error}). Received: {args.output}") from error
  for name in (*outputs, BEST_UNTIL_NOW):
    path = args.output / name
    if path.is_dir():
      shutil.rmtree(path)
    elif name != BEST_UNTIL_NOW or not keep_best_until_now:
      path.unlink(missing_ok=True)


class BestWeights(keras.callbacks.ModelCheckpoint):
  """Keeps the best weights of the finished epochs; `keep_best` handles the last one."""

  def on_train_batch_end(self, batch, logs=None):
    super().on_train_batch_end(batch, logs)
    self._is_finished = batch + 1 >= self.params["steps"]

  def on_epoch_end(self, epoch, logs=None):
    if self._is_finished:
      super().on_epoch_end(epoch, logs)


class AveragesValidated(keras.callbacks.Callback):
  """Replaces the weights by their moving averages from the start of validation to the end of the epoch.

  Callbacks that save averages come before it, those that save the state of training after it.

  (`keras.callbacks.SwapEMAWeights` adds and subtracts to swap the two, and training continues with rounding errors.)
  """

  def on_test_begin(self, logs=None):
    self._values = [v.numpy() for v in self.model.weights]
    take_averages(self.model)

  def on_epoch_end(self, epoch, logs=None):
    # Restores norms of constrained layers and the seed of estimates as well, as if there had been no validation.
    for variable, value in zip(self.model.weights, self._values):
      variable.assign(value)


def take_averages(model):
  """Replaces the weights by their moving averages, if the optimizer keeps any, as `fit` does at its end."""
  if model.optimizer.use_ema:
    with model.distribute_strategy.scope():
      model.optimizer.finalize_variable_values(model.trainable_variables)
      model.distribution.bijector.after_update()


def is_loaded(model, path):
  """Whether there are weights to load."""
  if not path.exists():
    return False
  try:
    model.load_weights(path)
    return True
  except (OSError, KeyError) as error:
    print(f"{path} cannot be read ({error}): the best weights of earlier epochs are lost.", file=sys.stderr)
    return False


def train(model, splits, state, first_epoch, best_is_there, args):
  """Trains until the last epoch, the time limit or Ctrl-C, and leaves the best weights in the model and in its file.

  Returns:
    bits_per_dim: Of the validation split.
    interrupted: Whether Ctrl-C was pressed.

  Raises:
    FloatingPointError: if training diverges.
    SystemExit: after SIGTERM, when the state has been written.
  """
  history = state.history.get("val_bits_per_dim", []) if best_is_there else []
  best = min(filter(math.isfinite, history), default=math.inf)
  checkpoint = BestWeights(args.output / BEST_UNTIL_NOW, monitor="val_bits_per_dim", mode="min", save_best_only=True,
                           save_weights_only=True, initial_value_threshold=best)
  interrupt = callbacks.StopOnInterrupt()
  of_workers = functools.partial(training_data.of_workers, splits, model.distribute_strategy)
  validation = of_workers("validation")
  # One worker cannot stop by itself: Ctrl-C ends it at once, and its end also ends the others.
  own = [] if args.strategy == "multiworker" else [interrupt]
  averages = [AveragesValidated()] if args.ema else []

  def fit(epochs):
    """Fits these epochs, without the batches of the first one that the state already has."""
    num_trained = state.num_batches
    images = training_data.to_train(splits, model.distribute_strategy, args, epochs, num_trained)
    # The rest of the time limit.
    limit = [callbacks.TimeLimit(max(60. * args.time_limit - state.seconds, 1e-3))] if args.time_limit else []
    model.fit(images, validation_data=validation, steps_per_epoch=len(splits["train"]) - num_trained,
              initial_epoch=epochs.start, epochs=epochs.stop,
              callbacks=[checkpoint, *averages, state, *own, *limit, callbacks.StopOnPreemption(state)])

  if first_epoch or state.num_batches:
    batches = f"{state.num_batches} batches of epoch {first_epoch + 1}" if state.num_batches else f"epoch {first_epoch}"
    print(f"Resuming after {batches} of {args.epochs}.")
  else:
    model.adapt(of_workers("train"))
  if first_epoch >= args.epochs:
    take_averages(model)  # Otherwise `fit` does it.
  while first_epoch < args.epochs:
    stop = first_epoch + 1 if state.num_batches else args.epochs  # First the rest of an interrupted epoch.
    fit(range(first_epoch, stop))
    first_epoch = args.epochs if stop == args.epochs or model.stop_training else state.restore(model)
  bits_per_dim = keep_best(model, validation, checkpoint)
  model.save_weights(args.output / WEIGHTS)
  return bits_per_dim, interrupt.interrupted


def end_at_once(*_):
  """A signal handler."""
  print("\nInterrupted: the results are not complete.", file=sys.stderr, flush=True)
  os._exit(EXIT_INTERRUPTED)


def learning_rate_schedule(args, steps_per_epoch):
  """A warm-up, then half a cosine down to 0 at the last step, or a constant rate."""
  num_steps = args.epochs * steps_per_epoch
  num_warmup_steps = num_steps // 20 if args.warm_up_steps is None else args.warm_up_steps
  return keras.optimizers.schedules.CosineDecay(
      0., max(num_steps - num_warmup_steps, 1), alpha=1. if args.schedule == "constant" else 0.,
      warmup_target=args.learning_rate, warmup_steps=num_warmup_steps)


def keep_best(model, validation_images, checkpoint):
  """Chooses between the current weights, which may be those of an unfinished epoch, and the best saved ones.

  Returns:
    Bits per dimension of the validation split.

  Raises:
    FloatingPointError: if there are neither.
  """
  strategy, bits_per_dim = model.distribute_strategy, evaluate(model, validation_images)
  if math.isfinite(checkpoint.best) and not bits_per_dim < checkpoint.best:
    if replicas.is_chief(strategy):  # In a resumed run the others may not have the file.
      model.load_weights(checkpoint.filepath)
    replicas.take_from_chief([v.value for v in model.weights], strategy)
    return float(checkpoint.best)
  if not math.isfinite(bits_per_dim):
    raise FloatingPointError(f"Bits per dimension of the validation split must be finite. Received: {bits_per_dim}")
  return bits_per_dim


def save_results(model, test_images, history, results, start, args, save_pictures=run_pictures.save_pictures,
                 outputs=OUTPUTS):
  """Writes pictures, SavedModel, the report and, last, the numbers: `results` and what is added to them here."""
  results = {
      **results,
      "num_parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
      "settings": {**vars(args), "output": str(args.output)},
      "versions": versions(),
  }
  save_pictures(model, test_images, history, results["bits_per_dim"], args.output, args.seed)
  model.export(args.output / SAVED_MODEL)
  results["seconds"] = round(time.monotonic() - start, 1)
  run_report.save_report(args.output, results, outputs)
  (args.output / RESULTS).write_text(json.dumps(results, indent=2) + "\n")
  print(f"Test bits per dim: {results['bits_per_dim']:.4f}, after {results['seconds']:.0f} s. In {args.output}: "
        f"{', '.join(outputs)}")


def print_next_commands(args):
  """Prints where to look, and what to do with a trained Glow."""
  folder = shlex.quote(str(args.output))
  print(f"""Open {args.output / run_report.REPORT} in a browser. Then, for example:
  python examples/edit_latents.py {folder}
  python examples/serve.py {folder}/{SAVED_MODEL} --images {folder}/{run_pictures.TEST_IMAGES}
  python examples/train_glow.py --data FOLDER_OF_PHOTOS --image-size 32 --num-blocks 3 --output photos""")


def evaluate(model, images):
  """Bits per dimension, a Python `float`."""
  return float(model.evaluate(images, return_dict=True, verbose=0)["bits_per_dim"])


def versions():
  """Versions that may affect the numbers."""
  modules = (tf, tfp, keras, np)
  return {"python": platform.python_version(), **{module.__name__: module.__version__ for module in modules}}


if __name__ == "__main__":
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # As in a background job of a shell.
    # In training, however, Ctrl-C ends the program at any place: an exception might be lost in a library, or crash it.
    signal.signal(signal.SIGINT, end_at_once)
  sys.exit(main())
