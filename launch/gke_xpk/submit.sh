#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster made by xpk, one process a host.
#
#   launch/gke_xpk/submit.sh --workload=NAME --cluster=CLUSTER \
#     --tpu_type=v6e-16 -- --config=configs/... --workdir=gs://bucket/run
#
# --workload=NAME --cluster=CLUSTER --tpu_type=TYPE   needed
# --project=PROJECT --zone=ZONE    (those of gcloud config)
# --num_slices=N                   (1)
# --base_docker_image=IMAGE        has what requirements*.txt name; xpk puts
#                                  this folder on top (python:3.12, into which
#                                  all is installed at each start)
# --docker_image=IMAGE             has this repository as well, as its WORKDIR
# --max_restarts=N                 after failures and preemptions (50)
# --grace=S                        from SIGTERM to the end, at most (120)
# --priority=LEVEL                 very-low, low, medium, high or very-high
# --spot                           on clusters that provision by themselves
# --dry_run                        print the command only
# Arguments after -- go to python -m lumina_jax.train.

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

workload='' cluster='' tpu_type='' project='' zone='' num_slices=1
base_docker_image='' docker_image='' max_restarts=50 grace=120 priority=''
spot=''
read_flags "workload cluster tpu_type project zone num_slices
 base_docker_image docker_image max_restarts grace priority" spot "$@"
need workload cluster tpu_type
need_number 1 num_slices
need_number 0 max_restarts grace
need_training gs://
[[ -z $base_docker_image || -z $docker_image ]] ||
  die "--base_docker_image or --docker_image, not both"

# A host that is told to go exits with 143 though all is saved: 0 would tell
# Kubernetes that the work is done. exec, since xpk signals one process only.
inside="exec bash launch/one_host/run.sh --stopped_code=143 -- "
inside+="$(quoted "${args[@]}")"

create=(xpk workload create "--workload=$workload" "--cluster=$cluster"
  "--tpu-type=$tpu_type" "--num-slices=$num_slices"
  "--max-restarts=$max_restarts"
  # By default 42 and 127 to 255 only; Python fails with 1.
  --restart-on-exit-codes=1
  "--termination-grace-period-seconds=$grace")
[[ -z $project ]] || create+=("--project=$project")
[[ -z $zone ]] || create+=("--zone=$zone")
[[ -z $priority ]] || create+=("--priority=$priority")
[[ -z $spot ]] || create+=(--spot)
if [[ -n $docker_image ]]; then
  create+=("--docker-image=$docker_image")
else
  create+=("--base-docker-image=${base_docker_image:-python:3.12}"
    "--script-dir=$root")
  [[ -n $base_docker_image ]] ||
    inside="pip install --quiet -r requirements.txt -r requirements-tpu.txt \
-e '.[gcs]' && $inside"
fi
run "${create[@]}" "--command=$inside"
