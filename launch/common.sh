# shellcheck shell=bash
# Shared by the launchers: reads flags, prints commands, refuses bad input.
# Launchers source this file and are called as SCRIPT --flag=value -- ARGS.

args=()   # Arguments after --, for training, unchanged.
dry_run=  # Prints commands instead of running them.

# The comment at the top of the script is its help text.
help() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# read_flags "NAMES" "SWITCHES" "$@": --name=value sets $name, --switch sets
# $switch to 1. The caller has set each to its default.
read_flags() {
  local names=" ${1//$'\n'/ } " switches=" $2 dry_run " flag
  shift 2
  while (($#)); do
    flag="${1#--}" flag="${flag%%=*}"
    case "$1" in
      --help | -h) help && exit ;;
      --) shift && args=("$@") && return ;;
      --*=*)
        [[ $names == *" $flag "* ]] || die "no flag --$flag=...; see --help"
        printf -v "$flag" %s "${1#*=}" ;;
      --*)
        [[ $names != *" $flag "* ]] || die "--$flag needs a value: --$flag=..."
        [[ $switches == *" $flag "* ]] || die "no flag --$flag; see --help"
        printf -v "$flag" 1 ;;
      *) die "unexpected '$1'; arguments of training go after --" ;;
    esac
    shift
  done
}

# need FLAG...: refuses a flag without a value.
need() {
  local flag
  for flag in "$@"; do
    [[ -n ${!flag} ]] || die "--$flag=... is missing; see --help"
  done
}

# need_number LEAST FLAG...: refuses values that are not integers from LEAST.
need_number() {
  local least=$1 flag
  shift
  for flag in "$@"; do
    if [[ ! ${!flag} =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((${!flag} < least)); then
      die "--$flag=${!flag} must be an integer of at least $least"
    fi
  done
}

# Checks the arguments of training before machines cost money. Machines whose
# disks vanish with them need a bucket: need_training gs://
need_training() {
  local arg workdir='' config=''
  for arg in "${args[@]}"; do
    case "$arg" in
      --config=?*) config=$arg ;;
      --workdir=?*) workdir=${arg#--workdir=} ;;
    esac
  done
  [[ -n $config ]] || die "--config=... is missing after --"
  [[ -n $workdir ]] || die "--workdir=... is missing after --"
  [[ $workdir == "${1-}"* ]] ||
    die "--workdir=$workdir: all machines must reach it; use a folder in $1"
}

# Quotes arguments as one line that a shell reads back unchanged.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command, or prints it.
run() {
  if [[ -n $dry_run ]]; then
    quoted "$@" && echo
  else
    "$@"
  fi
}
