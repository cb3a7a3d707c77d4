#!/bin/bash
# Trains the control stage on a SLURM cluster until it is done, over as many jobs as that takes:
#
#   sbatch configs/sd15/slurm.sh data.root=my_data
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 configs/sd15/slurm.sh data.root=my_data
#   CONFIG=configs/sd15/control_80gb.yaml sbatch configs/sd15/slurm.sh data.root=my_data
#
# The config is that for GPUs of 24 GB, or what CONFIG says. One task a GPU. From the repository's folder, on a file system that all machines see. Before its time is up, a job is
# sent SIGUSR1: train.py saves a checkpoint and ends with 138, and the job is put into the queue again. So it is
# when SLURM takes the machine away (--requeue); then at most train.save_minutes of work are done again.
#SBATCH --job-name=iccr_control
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=6G
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -u

SAVED=138 # train.py's exit status after SIGUSR1
PYTHON=${PYTHON:-.venv/bin/python}
CONFIG=${CONFIG:-configs/sd15/control.yaml}

if [ ! -x "$PYTHON" ]; then
    echo "slurm.sh: no $PYTHON in $PWD; submit from the repository's folder, or set PYTHON" >&2
    exit 2
fi

# Since SLURM 22.05 srun does not take the batch job's number of cores over by itself.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-8}"
srun --kill-on-bad-exit=1 "$PYTHON" train.py "$CONFIG" "$@"
status=$?
if [ "$status" -eq "$SAVED" ]; then
    echo "slurm.sh: saved before the time was up; job $SLURM_JOB_ID goes into the queue again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
