#!/bin/bash
# Trains on four machines of eight GPUs, and goes on by itself when the cluster has ended it:
#
#   sbatch examples/cluster/slurm.sh --preset imagenet32
#
# Each machine runs one worker. Run it from the repository, with the package installed for the `python` of all machines,
# and with the repository in a folder that all of them see: the chief keeps results and state there, in output-<job name>.

#SBATCH --job-name=glow
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# A job that is pre-empted is queued again; and at its time limit it is told two minutes before, with the same signal.
#SBATCH --requeue
#SBATCH --signal=TERM@120

# The signal is for the workers. This script must outlive them, to queue the job again.
trap : TERM

# The chief alone prints. A worker that has died ends all others, who would wait for it.
srun --kill-on-bad-exit=1 python examples/train_glow.py --strategy multiworker --output "output-$SLURM_JOB_NAME" "$@"
status=$?

if [ "$status" = 143 ]; then  # Ended by SIGTERM; the state has been written.
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
