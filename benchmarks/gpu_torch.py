"""The parts of `gpu.py` that measure normflows, in PyTorch and without TensorFlow: `torch_paper`, `torch_small`."""

import functools
import time

import numpy as np

try:
  import normflows as nf
  import torch
except ImportError as error:
  nf, _problem = None, str(error)

# (levels, steps of flow, width, batch size, image shape with channels first)
_PAPER, _SMALL, _TINY = (3, 32, 512, 64, (3, 32, 32)), (3, 8, 128, 64, (3, 32, 32)), (1, 2, 8, 4, (3, 4, 4))


def machine():
  """The machine, as PyTorch describes it."""
  return {"torch": torch.__version__} if nf is not None else {}


def torch_paper(session):
  """normflows with the paper's architecture for CIFAR-10."""
  return _entries(session, _TINY if session.tiny else _PAPER)


def torch_small(session):
  """normflows so small that the number of operations matters more than their work."""
  return _entries(session, _TINY if session.tiny else _SMALL)


def _entries(session, architecture):
  num_levels, num_steps, num_hidden, *_ = architecture
  if nf is None:
    yield "normflows", lambda: session.notes.append(f"left out: normflows is not installed ({_problem})") or {}
    return
  for allow_tf32, compiled in ((True, False), (False, False), (True, True)):
    label = (f"{num_levels} x {num_steps}, {num_hidden} wide: normflows, {'TF32' if allow_tf32 else 'float32'}, "
             f"{'torch.compile' if compiled else 'no XLA'}")
    if not (compiled and session.tiny):
      yield label, functools.partial(_measure, session, label, architecture, allow_tf32, compiled)


def _measure(session, label, architecture, allow_tf32, compiled):
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
  torch.backends.cudnn.benchmark = True
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
  batch_size, shape = architecture[3:]
  start = time.perf_counter()
  torch.manual_seed(0)
  model = _make_model(architecture).to(device)
  images = torch.from_numpy(
      np.random.default_rng(0).uniform(-0.5, 0.5, (batch_size, *shape)).astype(np.float32)).to(device)
  with torch.no_grad():
    model.log_prob(images, None)  # Initialises the actnorms.
  log_prob = torch.compile(model.log_prob) if compiled else model.log_prob
  optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=device.type == "cuda")

  def step(count):
    for _ in range(count):
      optimizer.zero_grad(set_to_none=True)
      loss = -log_prob(images, None).mean()
      loss.backward()
      optimizer.step()
    synchronize()
    return float(loss.detach())

  step(1)
  first = time.perf_counter() - start
  step(2)
  times = []
  for _ in range(2 if session.tiny else 5):
    start = time.perf_counter()
    step(2)
    times.append((time.perf_counter() - start) / 2)
  seconds = float(np.median(times))
  row = {"first step, s": first, "step, ms": 1e3 * seconds, "images/s": batch_size / seconds}
  if device.type == "cuda":
    row["peak, MiB"] = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
  return {label: row}


def _make_model(architecture):
  """`GlowBlock`s, as in `systems.py`."""
  num_levels, num_steps, num_hidden, _, (channels, height, width) = architecture
  base, merges, flows = [], [], []
  for level in range(num_levels):
    steps = [nf.flows.GlowBlock(channels * 2**(num_levels + 1 - level), num_hidden, scale=True, use_lu=True)
             for _ in range(num_steps)]
    flows.append(steps + [nf.flows.Squeeze()])
    if level:
      merges.append(nf.flows.Merge())
    exponent = num_levels - level
    base.append(nf.distributions.DiagGaussian(
        (channels * 2**(exponent + (level == 0)), height // 2**exponent, width // 2**exponent)))
  return nf.MultiscaleFlow(base, flows, merges, class_cond=False)
