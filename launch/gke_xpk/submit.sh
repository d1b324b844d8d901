#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster made by xpk, one process per host.
#
#   launch/gke_xpk/submit.sh --workload=NAME --cluster=CLUSTER \
#     --tpu_type=v6e-16 -- --config=configs/... --workdir=gs://bucket/run
#
# --workload=NAME --cluster=CLUSTER --tpu_type=TYPE   required
# --project=PROJECT --zone=ZONE    (from gcloud config)
# --num_slices=N                   number of slices (1)
# --base_docker_image=IMAGE        image with the packages of requirements*.txt;
#                                  xpk adds this folder (python:3.12, which
#                                  installs the packages at each start)
# --docker_image=IMAGE             image with this repository as its WORKDIR too
# --max_restarts=N                 after failures and preemptions (50)
# --grace=S                        most seconds from SIGTERM to the end (120)
# --priority=LEVEL                 very-low, low, medium, high or very-high
# --spot                           on clusters with autoprovisioning
# --dry_run                        prints the command only
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

# A stopped host exits with 143 after saving, since Kubernetes takes 0 as
# finished. exec, because xpk signals one process only.
inside="exec bash launch/one_host/run.sh --stopped_code=143 -- "
inside+="$(quoted "${args[@]}")"

create=(xpk workload create "--workload=$workload" "--cluster=$cluster"
  "--tpu-type=$tpu_type" "--num-slices=$num_slices"
  "--max-restarts=$max_restarts"
  # xpk restarts after 42 and 127 to 255 only; Python fails with 1.
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
