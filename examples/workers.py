"""The worker processes of a run, as described by a cluster."""

import os

import tensorflow as tf

_SLURM = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURMD_NODENAME", "SLURM_STEP_NUM_TASKS",
          "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")


def cluster_resolver():
  """The resolver for TF_CONFIG, as Kubeflow sets it, or else for the SLURM step of which this process is a task.

  Returns:
    A `tf.distribute.cluster_resolver.ClusterResolver`.

  Raises:
    ValueError: if there is neither.
  """
  if "TF_CONFIG" in os.environ:
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()
  missing = [name for name in _SLURM if name not in os.environ]
  if missing:
    raise ValueError("--strategy=multiworker must find the workers in TF_CONFIG, or run in a step of SLURM (`srun`). "
                     f"Received: an environment without TF_CONFIG and {', '.join(missing)}")
  return _slurm_resolver()


def _slurm_resolver():
  """Each task of the step is a worker, with the devices that SLURM lets it see."""
  tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
  # Two jobs may share a node. Any process may get ports from 32768 up from the system.
  first_port = 10000 + int(os.environ["SLURM_JOB_ID"]) % 1400 * 16
  workers = tf.distribute.cluster_resolver.SlurmClusterResolver(
      port_base=first_port, gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False).cluster_spec()
  # Not the number of the task: TensorFlow sorts the nodes alphabetically, n10 before n2, and SLURM may distribute its
  # tasks in turn.
  own = f"{os.environ['SLURMD_NODENAME']}:{first_port + int(os.environ['SLURM_LOCALID'])}"
  addresses = workers.job_tasks("worker")
  if own not in addresses:
    raise ValueError(f"SLURMD_NODENAME and SLURM_LOCALID must be of a task in {addresses}. Received: {own}")
  gpus = len(tf.config.list_physical_devices("GPU"))
  return tf.distribute.cluster_resolver.SimpleClusterResolver(
      workers, task_type="worker", task_id=addresses.index(own), num_accelerators={"GPU": gpus}, rpc_layer="grpc")
