"""What SLURM tells a process, and the files of `examples/cluster`."""

import pathlib
import subprocess

import options
import pytest
import workers
import yaml
from kubeflow.training import models
from kubernetes import client

CLUSTER = pathlib.Path(__file__).parent.parent / "examples" / "cluster"


def _set_slurm(monkeypatch, **kwargs):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  values = {"JOB_ID": 1402, "PROCID": 0, "LOCALID": 0, "STEP_NUM_TASKS": 5, "STEP_NODELIST": "n[2,10],m1",
            "STEP_TASKS_PER_NODE": "2(x2),1", **kwargs}
  for name, value in values.items():
    monkeypatch.setenv(f"SLURM_{name}", str(value))
  monkeypatch.setenv("SLURMD_NODENAME", "n2")


@pytest.mark.parametrize("node, local, own", [("n2", 0, "n2:10032"), ("n2", 1, "n2:10033"), ("n10", 1, "n10:10033"),
                                              ("m1", 0, "m1:10032")])
def test_a_task_of_slurm_is_the_worker_with_its_address(node, local, own, monkeypatch):
  _set_slurm(monkeypatch, LOCALID=local)
  monkeypatch.setenv("SLURMD_NODENAME", node)
  resolver = workers.cluster_resolver()
  addresses = resolver.cluster_spec().job_tasks("worker")
  assert sorted(addresses) == ["m1:10032", "n10:10032", "n10:10033", "n2:10032", "n2:10033"]
  assert resolver.task_type == "worker" and addresses[resolver.task_id] == own
  assert resolver.num_accelerators() == {"GPU": 0}


def test_what_is_missing_of_slurm_is_named(monkeypatch):
  _set_slurm(monkeypatch)
  monkeypatch.delenv("SLURM_STEP_NODELIST")
  with pytest.raises(ValueError, match="in TF_CONFIG, or run in a step.*without TF_CONFIG and SLURM_STEP_NODELIST$"):
    workers.cluster_resolver()


def test_a_node_that_is_not_of_the_step(monkeypatch):
  _set_slurm(monkeypatch)
  monkeypatch.setenv("SLURMD_NODENAME", "n3")
  with pytest.raises(ValueError, match=r"SLURMD_NODENAME.*n10:10032.*Received: n3:10032"):
    workers.cluster_resolver()


def test_the_batch_script_of_slurm(monkeypatch, tmp_path):
  """It runs with substitutes for SLURM's programs."""
  log = tmp_path / "log"
  programs = {"srun": '[ -z "$AT_LIMIT" ] || { kill -USR1 $PPID; while [ ! -e cancelled ]; do sleep 0.05; done; }\n'
                      "exit $EXIT_CODE",
              "scancel": "touch cancelled", "scontrol": 'echo "PreemptTime=$PREEMPT_TIME"'}
  for name, body in programs.items():
    (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{body}\n')
    (tmp_path / name).chmod(0o755)
  told, asked, again = "scancel --signal=TERM 7", "scontrol show job 7", "scontrol requeue 7"
  for exit_code, at_limit, preempt_time, expected in (
      (0, "", "None", []), (1, "", "None", []), (0, "yes", "None", [told]), (1, "yes", "None", [told]),
      (143, "yes", "None", [told, again]), (143, "", "2026-11-27T08:00:00", [asked, again]),
      (143, "", "None", [asked])):  # By `scancel`, or by the end of another worker.
    log.unlink(missing_ok=True)
    (tmp_path / "cancelled").unlink(missing_ok=True)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "EXIT_CODE": str(exit_code), "AT_LIMIT": at_limit,
                   "PREEMPT_TIME": preempt_time, "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "glow"}
    done = subprocess.run([CLUSTER / "slurm.sh", "--preset", "cifar10"], env=environment, cwd=tmp_path, timeout=60)
    srun, *others = log.read_text().splitlines()
    assert done.returncode == exit_code and others == expected
    _check_command(srun.split()[2:], monkeypatch)
    assert srun.endswith("--output output-glow --preset cifar10")


def test_the_manifest_of_kubernetes(monkeypatch):
  manifest = yaml.safe_load((CLUSTER / "kubernetes.yaml").read_text())
  _check_fits(manifest, "KubeflowOrgV1TFJob", "")
  worker = manifest["spec"]["tfReplicaSpecs"]["Worker"]
  assert worker["restartPolicy"] == "ExitCode"
  assert worker["template"]["spec"]["shareProcessNamespace"] is True
  container, = worker["template"]["spec"]["containers"]
  assert container["name"] == "tensorflow"
  _check_command(container["command"], monkeypatch)


def _check_command(command, monkeypatch):
  """Checks that `train_glow.py` accepts a command."""
  program, script, *arguments = command
  assert program == "python" and (CLUSTER.parent.parent / script).name == "train_glow.py"
  monkeypatch.setattr("sys.argv", [script, *arguments])
  args = options.parse(options.make_parser(""))
  assert args.strategy == "multiworker" and args.preset


def _check_fits(values, kind, path):
  """Checks fields against a kind of Kubernetes' or Kubeflow's, as their Python clients describe it."""
  if kind in ("str", "int", "bool"):
    assert type(values).__name__ == kind, path
  elif kind.startswith("list["):
    for index, value in enumerate(values):
      _check_fits(value, kind[len("list["):-1], f"{path}[{index}]")
  elif kind.startswith("dict("):
    kind = kind.split(", ")[1][:-1]
    for key, value in values.items():
      _check_fits(str(value) if kind == "str" else value, kind, f"{path}.{key}")  # Quantities may be numbers.
  else:
    model = getattr(models, kind, None) or getattr(client, kind)
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    for key, value in values.items():
      assert key in names, f"{path}.{key}"
      _check_fits(value, model.openapi_types[names[key]], f"{path}.{key}")
    model(**{names[key]: value for key, value in values.items()})  # It asks for required fields.
