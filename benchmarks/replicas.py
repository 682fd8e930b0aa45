"""Measures the time to the first step on many devices, and calculates the speed-up of many cards.

  python benchmarks/replicas.py                  both tables of docs/distributed.md: ten minutes on two cores
  python benchmarks/replicas.py --only scaling   only the calculation, from numbers of parameters
"""

import argparse
import dataclasses
import pathlib
import runpy

import results
import run

_COUNTS = (1, 2, 4, 8)
_MEASURED = ("--num_levels=3", "--num_steps=8", "--num_hidden=16", "--gradient=reversible")
_PRESETS = pathlib.Path(__file__).parent.parent / "examples" / "presets.py"


def main():
  run.run_sections(__doc__, SECTIONS, _add_arguments)


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Machines with cards. Rates are bytes per second that each sends and receives at the same time."""
  num_machines: int
  num_cards: int  # Cards of each machine.
  of_card: float  # Between the cards of a machine.
  of_machine: float = 1.  # Between machines.

  @property
  def num_replicas(self):
    return self.num_machines * self.num_cards

  def seconds(self, num_bytes):
    """Seconds of an exchange by rings: each sends and receives 2 (n - 1) / n times the data, first within machines."""
    ring = lambda count, bandwidth: 2. * (count - 1) / count * num_bytes / bandwidth
    return ring(self.num_cards, self.of_card) + ring(self.num_machines, self.of_machine)


_NVLINK = 300e9  # Of NVLink 4's 450e9 in each direction.
CLUSTERS = {"8 cards, NVLink": Cluster(1, 8, _NVLINK), "4 x 8 cards, 400 Gb/s": Cluster(4, 8, _NVLINK, 400e9 / 8),
            "4 x 8 cards, 100 Gb/s": Cluster(4, 8, _NVLINK, 100e9 / 8)}
# Operations per second of a card, as docs/gpu.md counts: 1.54e12 in the 279 ms of a training step of the paper's
# CIFAR-10 model.
_OPERATIONS_A_SECOND = 5.5e12


def operations(preset):
  """Floating-point operations of the convolutions in a training step, for one image.

  Args:
    preset: One of `examples/presets.py`.
  """
  size, channels, multiplications = preset.image_size, 3, 0
  for _ in range(preset.num_blocks):
    size, channels = size // 2, 4 * channels
    num_outputs = channels if preset.coupling == "affine" else channels // 2
    network = 9 * channels // 2 * preset.num_hidden + preset.num_hidden**2 + 9 * preset.num_hidden * num_outputs
    multiplications += preset.num_steps * size**2 * network
    channels //= 2
  num_passes = 4 if preset.gradient == "reversible" else 3  # The backward pass costs two, and rebuilding one.
  return 2 * num_passes * multiplications


def speed_up(cluster, num_bytes, seconds_of_image, batch_size):
  """The speed-up over one card that gets whole batches.

  Args:
    cluster: `Cluster`.
    num_bytes: Bytes that each replica exchanges.
    seconds_of_image: Seconds of a training step for one image, on one card.
    batch_size: Images of a step, over all cards.
  """
  share = -(-batch_size // cluster.num_replicas)  # The slowest replica's.
  return batch_size * seconds_of_image / (share * seconds_of_image + cluster.seconds(num_bytes))


def _num_parameters(preset):
  """Number of parameters, from those of two shallow models: it is linear in the depth."""
  import tfp_glow
  num_classes = 1000 if preset.data.startswith("imagenet") else 10
  kwargs = {"coupling": preset.coupling, "num_classes": num_classes if preset.conditional else None}
  counts = []
  for num_steps in (1, 2):
    glow = tfp_glow.GlowBijector((preset.image_size, preset.image_size, 3), preset.num_blocks, num_steps,
                                 preset.num_hidden, **kwargs)
    counts.append(sum(variable.shape.num_elements() for variable in glow.trainable_variables))
  return counts[0] + (preset.num_steps - 1) * (counts[1] - counts[0])


def _scaling(args):
  presets = runpy.run_path(str(_PRESETS))["PRESETS"]
  table = results.Table("preset", "parameters", "MiB a step", "batch", "one card, s a step", *CLUSTERS)
  for name, preset in presets.items():
    num_bytes = 4 * (_num_parameters(preset) + 4)
    seconds = operations(preset) / _OPERATIONS_A_SECOND
    cells = [f"{speed_up(cluster, num_bytes, seconds, preset.batch_size):.1f}" for cluster in CLUSTERS.values()]
    table.add(name, f"{num_bytes / 4e6:.1f} million", f"{num_bytes / 2**20:.0f}", preset.batch_size,
              f"{preset.batch_size * seconds:.1f}", *cells)
  table.save(args, "replicas_scaling")


def _start(args):
  """Seconds from construction to the end of the first step."""
  table = results.Table("devices", "first step, s", "processor, s", "peak, MiB")
  for count in _COUNTS:
    rounds = [run.measure("tfp_glow", "replicas", f"--replicas={count}", *_MEASURED) for _ in run.progress(args.rounds)]
    table.add(count, *(run.spread([found[key] for found in rounds]) for key in ("seconds", "processor", "peak")))
  table.save(args, "replicas_start")


def _add_arguments(parser: argparse.ArgumentParser):
  parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (%(default)s)")


SECTIONS = {"start": _start, "scaling": _scaling}

if __name__ == "__main__":
  main()
