#!/usr/bin/env bash
# Trains on a Cloud TPU slice, one process per host.
#
#   launch/tpu_vm/tpu.sh ACTION --name=NAME --zone=ZONE [flags] [-- ARGS]
#
# create    creates the slice: --accelerator_type=v6e-16 [--spot] [--queued]
# install   copies and installs the last commit; repeat after each commit
# start     trains in the background, with ARGS; the same command resumes
# stop      saves and ends training
# logs      follows the output of one host: [--worker=0]
# status    describes the slice: [--queued]
# delete    deletes the slice: [--queued]
#
# --name=NAME --zone=ZONE   of the slice; always required
# --project=PROJECT         (from gcloud config)
# --accelerator_type=TYPE   such as v5litepod-16, v5p-32, v6e-16
# --runtime_version=IMAGE   (Google's image for JAX on that type)
# --service_account=EMAIL   an account that can read and write the bucket
# --spot                    cheaper; can be preempted at any time
# --queued                  waits in the queue instead of failing
# --restarts=N              restarts after failures, on each host (10)
# --worker=I                host to follow the log of (0)
# --dry_run                 prints the commands only
# ARGS: arguments of python -m lumina_jax.train, with --workdir=gs://...

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

actions="create, install, start, stop, logs, status or delete"
action="${1-}"
case "$action" in
  '') die "missing action: $actions; see --help" ;;
  --help | -h) help && exit ;;
  -*) die "put the action first: $actions; see --help" ;;
esac
shift
name='' zone='' project='' accelerator_type='' runtime_version=''
service_account='' spot='' queued='' restarts=10 worker=0
read_flags "name zone project accelerator_type runtime_version
 service_account restarts worker" "spot queued" "$@"
need name zone
need_number 0 restarts worker
[[ $action == start ]] || ((${#args[@]} == 0)) ||
  die "arguments after -- belong to start, not to $action"

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

# on WORKERS SCRIPT: runs a shell command on these hosts, in the home folder.
on() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" \
    "--command=$2"
}

# Images for JAX, from Google's table of TPU software versions.
image_for() {
  case "$1" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) die "--accelerator_type=$1: pass its --runtime_version=... too" ;;
  esac
}

create() {
  need accelerator_type
  local image=$runtime_version
  [[ -n $image ]] || image="$(image_for "$accelerator_type")"
  local flags=("${where[@]}" "--accelerator-type=$accelerator_type")
  [[ -z $service_account ]] || flags+=("--service-account=$service_account")
  [[ -z $spot ]] || flags+=(--spot)
  if [[ -n $queued ]]; then
    run gcloud compute tpus queued-resources create "$name" \
      "--node-id=$name" "${flags[@]}" "--runtime-version=$image"
  else
    run gcloud compute tpus tpu-vm create "$name" "${flags[@]}" \
      "--version=$image"
  fi
}

# The images have Python 3.10, which is too old; uv installs a newer one.
install() {
  local archive="${TMPDIR:-/tmp}/lumina_jax.tar.gz" script
  run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:lumina_jax.tar.gz" \
    "${where[@]}" --worker=all
  script='set -e; rm -rf lumina_jax; mkdir lumina_jax; '
  script+='tar -xzf lumina_jax.tar.gz -C lumina_jax; cd lumina_jax; '
  script+='python3 -m pip install --quiet --user uv; '
  script+='test -e ~/lumina_venv || '
  script+='python3 -m uv venv --python 3.12 ~/lumina_venv; '
  script+='python3 -m uv pip install --python ~/lumina_venv/bin/python '
  script+="-r requirements.txt -r requirements-tpu.txt -e '.[gcs]'"
  on all "$script"
}

# Runs in its own session, which outlives the connection. Hosts find each other.
# A failure on one host ends the processes of all, and run.sh restarts them.
# shellcheck disable=SC2016  # For the shell of the hosts.
start() {
  need_training gs://
  local script
  script='if kill -0 "$(cat lumina_train.pid 2>/dev/null)" 2>/dev/null; then '
  script+='echo "already running: stop it first" >&2; exit 1; fi; '
  script+='setsid bash lumina_jax/launch/one_host/run.sh '
  script+="--restarts=$restarts --python=\"\$HOME/lumina_venv/bin/python\" -- "
  script+="$(quoted "${args[@]}") "
  script+='</dev/null >>lumina_train.log 2>&1 & echo $! >lumina_train.pid'
  on all "$script"
}

describe_or_delete() {
  local force=()
  if [[ -n $queued ]]; then
    [[ $1 == describe ]] || force=(--force)  # The slice goes with the request.
    run gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" \
      "${force[@]}"
  else
    run gcloud compute tpus tpu-vm "$1" "$name" "${where[@]}"
  fi
}

# shellcheck disable=SC2016  # For the shell of the hosts.
case "$action" in
  create) create ;;
  install) install ;;
  start) start ;;
  stop) on all 'kill -s TERM "$(cat lumina_train.pid)"' ;;
  logs) on "$worker" 'tail -n 100 -F lumina_train.log' ;;
  status) describe_or_delete describe ;;
  delete) describe_or_delete delete ;;
  *) die "no action '$action': $actions; see --help" ;;
esac
