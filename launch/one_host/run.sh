#!/usr/bin/env bash
# Trains in one or more processes on this machine.
#
#   launch/one_host/run.sh --num_processes=2 --cpu_devices=4 -- \
#     --config=configs/digits.py --workdir=runs/two
#
# --num_processes=N    number of processes (1)
# --cpu_devices=K      K fake CPU devices per process, to try things out
# --gpus=0,1,2,3       GPUs, split evenly over the processes
# --restarts=N         restarts of all processes after a failure (0)
# --restart_delay=S    seconds before a restart (5)
# --grace=S            seconds for the others to end after a failure (60)
# --stopped_code=N     exit code after SIGTERM or SIGINT if all exit 0 (0)
# --log_dir=DIR        writes output of process i to DIR/process_i.log
# --port=P             port of process 0 (a free one)
# --python=PYTHON      Python to run (python)
# --dry_run            prints the commands only
# Arguments after -- go to python -m lumina_jax.train.

set -euo pipefail
# wait -n -p came with 5.1.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || {
  echo "run.sh: bash $BASH_VERSION is too old; 5.1 is needed" >&2
  exit 2
}
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

num_processes=1 cpu_devices='' gpus='' restarts=0 restart_delay=5 grace=60
stopped_code=0 log_dir='' port='' python=python
read_flags "num_processes cpu_devices gpus restarts restart_delay grace
 stopped_code log_dir port python" "" "$@"
need_number 1 num_processes
need_number 0 restarts restart_delay grace stopped_code
[[ -z $cpu_devices ]] || need_number 1 cpu_devices
[[ -z $port ]] || need_number 1 port
[[ -z $cpu_devices || -z $gpus ]] || die "--cpu_devices or --gpus, not both"
((${#args[@]})) || die "no arguments for training; pass them after --"
IFS=, read -ra gpu_list <<<"$gpus"
((${#gpu_list[@]} % num_processes == 0)) ||
  die "--gpus=$gpus do not divide over $num_processes processes"

processes=()  # Running processes: process id -> pid.
starting=     # Set until all processes run.
stopping=     # The signal that stops the script.

# A port below the ephemeral range, so that no other program gets it before
# process 0 does.
free_port() {
  local candidate
  while true; do
    candidate=$((20000 + RANDOM % 12000))
    (: <>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null ||
      { echo "$candidate" && return; }
  done
}

# set_command I PORT: sets $command for process I. A single process gets no
# variables: on a TPU pod or under SLURM it finds the others.
set_command() {
  local i=$1 share=$((${#gpu_list[@]} / num_processes)) gpus_of_i
  command=(env)
  if ((num_processes > 1)); then
    command+=("LUMINA_COORDINATOR=127.0.0.1:$2"
      "LUMINA_NUM_PROCESSES=$num_processes" "LUMINA_PROCESS_ID=$i")
  fi
  if [[ -n $cpu_devices ]]; then
    command+=(JAX_PLATFORMS=cpu
      "XLA_FLAGS=--xla_force_host_platform_device_count=$cpu_devices")
  elif ((share)); then
    gpus_of_i="$(IFS=, && echo "${gpu_list[*]:i * share:share}")"
    command+=("CUDA_VISIBLE_DEVICES=$gpus_of_i")
  fi
  command+=("$python" -m lumina_jax.train "${args[@]}")
}

# Job control gives each process its own group. So Ctrl-C reaches it only
# through this script, does not reach its data workers, and a group can be
# killed whole.
start() {
  local i=$1
  set_command "$i" "$2"
  set -m
  if [[ -n $log_dir ]]; then
    "${command[@]}" </dev/null >>"$log_dir/process_$i.log" 2>&1 &
  else
    "${command[@]}" </dev/null &
  fi
  processes[i]=$!
  set +m
}

forward() {
  local pid
  stopping=$1
  [[ -z $starting ]] || return 0  # run_all forwards it when all have started.
  for pid in "${processes[@]}"; do
    kill -s "$1" "$pid" 2>/dev/null || true
  done
}

# Kills the remaining members of process groups.
end_groups() {
  local pid
  for pid in "$@"; do
    kill -s KILL -- "-$pid" 2>/dev/null || true
  done
}

# Sets $ended and $status to the pid and exit code of a process that has ended.
# It polls, since `wait -n` misses processes that end before it starts.
wait_for_one() {
  local pid nap
  while true; do
    for pid in "$@"; do
      kill -0 "$pid" 2>/dev/null && continue
      status=0 ended=$pid
      wait "$pid" || status=$?
      return 0
    done
    sleep 0.1 &
    nap=$!
    wait "$nap" || true  # A signal interrupts wait, but not sleep.
  done
}

# Waits for all; sets $code to the exit code of the first failure, else to 0.
wait_for_all() {
  local i ended status timer=
  code=0
  while ((${#processes[@]})); do
    wait_for_one "${processes[@]}" $timer
    [[ -n $ended ]] || continue
    if [[ $ended == "$timer" ]]; then
      echo "run.sh: ending the others, $grace s after the failure" >&2
      timer=
      end_groups "${processes[@]}"
      continue
    fi
    for i in "${!processes[@]}"; do
      [[ ${processes[i]} == "$ended" ]] || continue
      unset "processes[i]"
      end_groups "$ended"
      if ((status && !code)); then
        code=$status
        echo "run.sh: process $i failed with exit code $status" >&2
        sleep "$grace" &
        timer=$!
      fi
    done
  done
  [[ -z $timer ]] || kill "$timer" 2>/dev/null || true
}

run_all() {
  local i coordinator_port=${port:-$(free_port)}
  starting=1
  for ((i = 0; i < num_processes; i++)); do
    start "$i" "$coordinator_port"
  done
  starting=
  [[ -z $stopping ]] || forward "$stopping"
  wait_for_all
}

if [[ -n $dry_run ]]; then
  coordinator_port=${port:-$(free_port)}
  for ((i = 0; i < num_processes; i++)); do
    set_command "$i" "$coordinator_port"
    run "${command[@]}"
  done
  exit
fi

cd "$root"
[[ -z $log_dir ]] || mkdir -p "$log_dir"
trap 'end_groups "${processes[@]}"' EXIT
trap 'forward TERM' TERM HUP
trap 'forward INT' INT

for ((attempt = 0; ; attempt++)); do
  run_all
  [[ -z $stopping ]] || ((code)) || code=$stopped_code
  [[ -z $stopping ]] && ((code && attempt < restarts)) || exit "$code"
  echo "run.sh: restart $((attempt + 1)) of at most $restarts" \
    "in $restart_delay s" >&2
  sleep "$restart_delay" &
  wait $! || true
  [[ -z $stopping ]] || exit "$code"
done
