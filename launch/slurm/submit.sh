#!/usr/bin/env bash
# Trains on GPUs of a SLURM cluster, one task per GPU.
#
#   launch/slurm/submit.sh --nodes=2 --gpus_per_node=8 -- \
#     --config=configs/... --workdir=/shared/run
#
# --nodes=N               number of nodes (1)
# --gpus_per_node=G       a number, or a type and a number: h100:8; required
# --cpus_per_task=C       CPUs per GPU (8)
# --time=LIMIT            time limit of a job, which then requeues (24:00:00)
# --partition= --account= --qos= --mem=   as your site requires
# --job_name=NAME         (lumina)
# --log_dir=DIR           (runs/slurm_logs)
# --restarts=N            restarts after failures, per job (3)
# --python=PYTHON         Python with this package, on all nodes (python)
# --dry_run               prints the commands only
# Arguments after -- go to python -m lumina_jax.train.

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

nodes=1 gpus_per_node='' cpus_per_task=8 time=24:00:00 job_name=lumina
log_dir="$root/runs/slurm_logs" restarts=3 python=python
# shellcheck disable=SC2034  # Read by name below.
partition='' account='' qos='' mem=''
read_flags "nodes gpus_per_node cpus_per_task time partition account qos mem
 job_name log_dir restarts python" "" "$@"
need gpus_per_node time job_name log_dir python
tasks_per_node=${gpus_per_node##*:}
[[ $tasks_per_node =~ ^[1-9][0-9]*$ ]] ||
  die "--gpus_per_node=$gpus_per_node: write a number, or TYPE:N as in h100:8"
need_number 1 nodes cpus_per_task
need_number 0 restarts
need_training ''
[[ $log_dir == /* ]] || log_dir="$PWD/$log_dir"

submit=(sbatch "--job-name=$job_name" "--nodes=$nodes"
  "--gpus-per-node=$gpus_per_node" "--ntasks-per-node=$tasks_per_node"
  "--cpus-per-task=$cpus_per_task" "--time=$time" "--chdir=$root"
  "--output=$log_dir/%x_%j.log")
for flag in partition account qos mem; do
  [[ -z ${!flag} ]] || submit+=("--$flag=${!flag}")
done

# SLURM does not create the folder of its log and loses the log without it.
run mkdir -p "$log_dir"
run "${submit[@]}" "$root/launch/slurm/train.sbatch" "--restarts=$restarts" \
  "--python=$python" -- "${args[@]}"
