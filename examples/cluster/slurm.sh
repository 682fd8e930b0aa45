#!/bin/bash
# Trains on four machines of eight GPUs, and goes on by itself when the cluster has ended it:
#
#   sbatch examples/cluster/slurm.sh --preset imagenet32
#
# Each machine runs one worker. Run it from the repository, with the package installed for the `python` of all machines,
# and with the repository in a folder that all of them see: the chief keeps results and state there, in output-<job name>.
# TFDS must have prepared the data before, where all find it: four workers would all begin to.

#SBATCH --job-name=glow
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# A job whose machine has failed is queued again.
#SBATCH --requeue
# This script is told two minutes before the time limit, and tells the workers. It must outlive them.
#SBATCH --signal=B:USR1@120
trap 'was_told=yes; at_limit=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
trap 'was_told=yes' TERM

# The chief alone prints. A worker that has died ends all others, who would wait for it.
srun --kill-on-bad-exit=1 python examples/train_glow.py --strategy multiworker --output "output-$SLURM_JOB_NAME" "$@" &
was_told=yes
while [ -n "$was_told" ]; do  # A signal to this script ends the waiting, too.
  was_told=
  wait $!
  status=$?
done

was_preempted() {
  scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'
}

# 143: ended by SIGTERM, the state has been written. Not after `scancel`, and not where the death of one worker, with an
# error, was the others' end.
if [ "$status" = 143 ] && { [ -n "$at_limit" ] || was_preempted; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
