#!/usr/bin/env bash
# Trains on a Cloud TPU slice, one process a host.
#
#   launch/tpu_vm/tpu.sh ACTION --name=NAME --zone=ZONE [flags] [-- ARGS]
#
# create    make the machines: --accelerator_type=v6e-16 [--spot] [--queued]
# install   copy the last commit there and install it; again after each commit
# start     train in the background, with ARGS; the same again resumes
# stop      save and end
# logs      follow the output of one host: [--worker=0]
# status    describe the machines: [--queued]
# delete    give the machines back: [--queued]
#
# --name=NAME --zone=ZONE   of the slice; always needed
# --project=PROJECT         (that of gcloud config)
# --accelerator_type=TYPE   such as v5litepod-16, v5p-32, v6e-16
# --runtime_version=IMAGE   (the one Google names for JAX on that type)
# --service_account=EMAIL   one that may read and write the bucket
# --spot                    cheaper; may be taken away at any time
# --queued                  ask in the queue, rather than now or never
# --restarts=N              on each host, after failures (10)
# --worker=I                whose log (0)
# --dry_run                 print the commands only
# ARGS: of python -m lumina_jax.train, with --workdir=gs://...

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

actions="create, install, start, stop, logs, status or delete"
action="${1-}"
case "$action" in
  '') die "say what to do: $actions; see --help" ;;
  --help | -h) help && exit ;;
  -*) die "the action comes first: $actions; see --help" ;;
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

# on WORKERS SCRIPT: runs a line of shell on those hosts, in the home folder.
on() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" \
    "--command=$2"
}

# What Google's table of TPU software versions names for JAX.
image_for() {
  case "$1" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) die "--accelerator_type=$1: name its --runtime_version=... as well" ;;
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

# The images bring Python 3.10, which is too old: uv fetches another.
install() {
  local archive="${TMPDIR:-/tmp}/lumina_jax.tar.gz" there
  run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:lumina_jax.tar.gz" \
    "${where[@]}" --worker=all
  there='set -e; rm -rf lumina_jax; mkdir lumina_jax; '
  there+='tar -xzf lumina_jax.tar.gz -C lumina_jax; cd lumina_jax; '
  there+='python3 -m pip install --quiet --user uv; '
  there+='test -e ~/lumina_venv || '
  there+='python3 -m uv venv --python 3.12 ~/lumina_venv; '
  there+='python3 -m uv pip install --python ~/lumina_venv/bin/python '
  there+="-r requirements.txt -r requirements-tpu.txt -e '.[gcs]'"
  on all "$there"
}

# In a session of its own, so that it outlives the connection. Hosts find each
# other by themselves; a failure on one ends the process of each, and run.sh
# starts it again.
# shellcheck disable=SC2016  # For the shell of the hosts.
start() {
  need_training gs://
  local there
  there='if kill -0 "$(cat lumina_train.pid 2>/dev/null)" 2>/dev/null; then '
  there+='echo "already running: stop it first" >&2; exit 1; fi; '
  there+='setsid bash lumina_jax/launch/one_host/run.sh '
  there+="--restarts=$restarts --python=\"\$HOME/lumina_venv/bin/python\" -- "
  there+="$(quoted "${args[@]}") "
  there+='</dev/null >>lumina_train.log 2>&1 & echo $! >lumina_train.pid'
  on all "$there"
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
