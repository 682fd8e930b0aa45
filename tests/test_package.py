"""The package as such: what imports what, and what an import does."""

import ast
import pathlib
import subprocess
import sys

import pytest

import tfp_glow

PACKAGE = pathlib.Path(tfp_glow.__file__).parent

# Who may import whom: each module, everything to its left (a group in brackets does not import within itself, except
# as stated). Arrows run one way only.
_ALLOWED = {
    "checks": set(),
    "gradients": set(),
    "files": set(),
    "networks": {"gradients"},
    "precision": {"gradients"},
    "bijectors.channels": set(),
    "bijectors.passes": set(),
    "bijectors.one_pass": {"bijectors.passes", "checks", "gradients"},
    "dequantize": set(),
    "preparation": set(),
    "data": {"data_npz", "preparation"},
    "data_npz": set(),
    "version": set(),
    "replicas": set(),
    "latent": set(),
    "lipschitz": {"checks", "gradients", "networks"},
    "bijectors.actnorm": {"bijectors.channels", "bijectors.one_pass", "networks"},
    "bijectors.conv1x1": {"bijectors.channels", "bijectors.one_pass", "networks"},
    "bijectors.permutation": {"bijectors.channels", "bijectors.one_pass"},
    "bijectors.coupling": {"bijectors.one_pass", "gradients", "networks"},
    "bijectors.squeeze": {"bijectors.one_pass"},
    "bijectors.factor_out": {"bijectors.one_pass", "networks"},
    "bijectors.whole_flow": {"bijectors.one_pass"},
    "bijectors.scan": {"bijectors.one_pass", "gradients"},
    "bijectors.logit": {"bijectors.one_pass", "checks"},
    "bijectors.log_det": {"gradients"},
    "bijectors.fixed_point": {"gradients"},
    "bijectors.residual": {"checks", "lipschitz", "networks"} | {
        f"bijectors.{name}" for name in ("one_pass", "log_det", "fixed_point")},
    "residual_flow": {"checks", "lipschitz", "networks"} | {
        f"bijectors.{name}" for name in ("one_pass", "actnorm", "logit", "residual", "scan", "squeeze",
                                 "whole_flow")},
    "glow": {"checks", "networks"} | {f"bijectors.{name}" for name in (
        "one_pass", "channels", "actnorm", "conv1x1", "permutation", "coupling", "squeeze", "factor_out", "scan",
        "whole_flow")},
    "original_architecture": set(),
    "original": {"dequantize", "glow", "model", "original_architecture", "bijectors.conv1x1"},
    "codec": {"dequantize"},
    "export": {"codec", "files", "gradients"},
    "health": set(),
    "inputs": {"health"},
    "serialization": {"bijectors.one_pass"},
    "steps": {"dequantize", "health", "inputs", "networks", "replicas"},
    "model": {"checks", "codec", "dequantize", "export", "files", "health", "inputs", "replicas", "serialization",
              "steps"},
    "evaluation": {"codec", "dequantize", "inputs", "model"},
    "pictures": set(),
    "callbacks.time_limit": set(),
    "callbacks.stop_on_interrupt": set(),
    "callbacks.training_state": {"files", "replicas"},
    "callbacks.folder_writer": {"files", "model", "replicas"},
    "callbacks.bits_per_dim_curve": {"callbacks.folder_writer", "files"},
    "callbacks.picture": {"callbacks.folder_writer", "pictures"},
    "callbacks.sample_grid": {"callbacks.picture"},
    "callbacks.latent_interpolation": {"callbacks.picture", "latent"},
}


def _modules():
  return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
          if path.name != "__init__.py"}


def _imports(path):
  """The modules of the package that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names if alias.name.startswith("tfp_glow")}
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfp_glow"):
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  known = _modules()
  names = {name.removeprefix("tfp_glow").lstrip(".") for name in found}
  return {name if name in known else name.rpartition(".")[0] for name in names}


@pytest.mark.parametrize("module", sorted(_modules()))
def test_imports_run_one_way(module):
  assert module in _ALLOWED, f"say in this test what {module} may import"
  assert _imports(_modules()[module]) <= _ALLOWED[module]


def test_relative_imports_do_not_hide_from_the_test():
  for path in _modules().values():
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(ast.parse(path.read_text())))


def test_only_one_file_knows_the_internal_cache():
  assert [name for name, path in _modules().items() if "_cache" in path.read_text()] in ([], ["bijectors.one_pass"])


@pytest.mark.slow
def test_import_prints_nothing_of_its_own():
  def prints(statement):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", statement], capture_output=True, text=True, check=True,
                          cwd=PACKAGE.parent)
    # TensorFlow logs that it found no GPU and the like, with time stamps, whatever its log level is set to.
    lines = [line for line in done.stderr.splitlines() if line[:5] not in ("I0000", "W0000", "E0000", "WARNI", "To en")]
    return done.stdout + "\n".join(lines)

  assert prints("import tfp_glow") == prints("import tensorflow, tensorflow_probability, keras") == ""


def test_every_public_name_is_documented():
  for name in tfp_glow.__all__:
    if name != "__version__":
      assert (getattr(tfp_glow, name).__doc__ or "").strip(), name
