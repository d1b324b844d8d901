"""The launchers: printed commands, refused flags, real runs on this host."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.e2e

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
ONE_HOST = LAUNCH / "one_host" / "run.sh"
TPU = LAUNCH / "tpu_vm" / "tpu.sh"
GKE = LAUNCH / "gke_xpk" / "submit.sh"
SLURM = LAUNCH / "slurm" / "submit.sh"
JOB = LAUNCH / "slurm" / "train.sbatch"
LAUNCHERS = (ONE_HOST, TPU, GKE, SLURM, JOB)
SCRIPTS = (*LAUNCHERS, LAUNCH / "common.sh")

# Arguments that a shell could change on their way to training.
ODD = [
  "--x=a  b",
  "it's",
  'say "hi"',
  "$HOME `id` $(id)",
  "a\nb",
  "*;&|",
  "é,{",
]
NEEDED = ["--config=configs/digits.py", "--workdir=gs://bucket/run"]
ARGS = [*NEEDED, *ODD]
TRAIN = ["-m", "lumina_jax.train", *ARGS]

SLICE = ["--name=slice", "--zone=us-central2-b"]
WORKLOAD = ["--workload=run", "--cluster=pods", "--tpu_type=v6e-16"]
COMPLETE = {  # The required flags of each launcher.
  ONE_HOST: [],
  TPU: ["start", *SLICE],
  GKE: WORKLOAD,
  SLURM: ["--gpus_per_node=8"],
  JOB: [],
}
OTHERS = (  # Programs that a dry run must not start.
  *("git", "gcloud", "xpk", "sbatch", "srun", "scancel", "scontrol"),
  *("python", "pip", "mkdir"),
)
FOREVER = "while true; do sleep 0.05; done"
WAIT = 30  # seconds until a test gives up


def program(folder: pathlib.Path, name: str, text: str) -> pathlib.Path:
  """Writes a shell program to a folder for PATH."""
  folder.mkdir(exist_ok=True, parents=True)
  path = folder / name
  path.write_text(f"#!/bin/bash\n{text}\n")
  path.chmod(0o755)
  return path


def with_path(folder: pathlib.Path, **variables) -> dict[str, str]:
  environ = {k: v for k, v in os.environ.items() if "LUMINA" not in k}
  return environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | variables


def call(script, *flags, env=None) -> subprocess.CompletedProcess:
  return subprocess.run(
    ["bash", str(script), *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
    timeout=WAIT,
  )


def dry(tmp_path, script, *flags, training=()) -> list[str]:
  """The lines of a dry run; checks that it started no program."""
  touched = tmp_path / "touched"
  for name in OTHERS:
    program(tmp_path / "no", name, f"echo {name} >>{touched}; exit 9")
  rest = ["--", *training] if training else []
  env = with_path(tmp_path / "no")
  done = call(script, *flags, "--dry_run", *rest, env=env)
  assert done.returncode == 0, done.stderr
  assert not touched.exists(), touched.read_text()
  return done.stdout.splitlines()


def recorders(tmp_path) -> tuple[pathlib.Path, pathlib.Path]:
  """A folder of programs that record their arguments, and that record."""
  record = tmp_path / "record"
  for name in OTHERS:
    program(tmp_path / "yes", name, f'printf "%s\\0" {name} "$@" >{record}')
  return tmp_path / "yes", record


def words(tmp_path, line: str) -> list[str]:
  """The command and arguments that a shell reads in a printed line."""
  folder, record = recorders(tmp_path)
  subprocess.run(["bash", "-c", line], check=True, env=with_path(folder))
  return recorded(record)


def recorded(record: pathlib.Path) -> list[str]:
  return record.read_text().split("\0")[:-1]


def wait_until(true) -> None:
  end = time.monotonic() + WAIT
  while not true():
    assert time.monotonic() < end, "timeout"
    time.sleep(0.02)


def running(mark) -> list[int]:
  """Processes whose command line contains the mark."""
  lines = subprocess.run(
    ["ps", "-ww", "-eo", "pid,stat,args"], capture_output=True
  ).stdout.splitlines()
  found = (
    line.split(maxsplit=2) for line in lines if str(mark).encode() in line
  )
  return [int(pid) for pid, stat, _ in found if not stat.startswith(b"Z")]


@pytest.fixture(autouse=True)
def leave_nothing_behind(tmp_path):
  yield
  for pid in running(f"{tmp_path}/"):  # only after a failure
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.parent.name)
def test_scripts_pass_shellcheck(script):
  shellcheck = shutil.which("shellcheck") or shutil.which(
    "shellcheck", path=pathlib.Path(sys.executable).parent
  )
  assert shellcheck, "pip install -r requirements-test.txt brings shellcheck"
  for command in (["bash", "-n"], [shellcheck, "-x"]):
    done = subprocess.run(
      [*command, script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
  assert max(map(len, script.read_text().splitlines())) <= 80
  assert script in (JOB, SCRIPTS[-1]) or os.access(script, os.X_OK)


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda p: p.parent.name)
def test_help_names_every_flag(script):
  names, switches = re.search(
    r'^read_flags "([^"]*)" "?([^"]*?)"? "\$@"$', script.read_text(), re.M
  ).groups()
  flags = [*names.split(), *switches.split(), "dry_run"]
  done = call(script, "--help")
  assert done.returncode == 0 and "set -e" not in done.stdout
  missing = [f for f in flags if not re.search(f"--{f}\\b", done.stdout)]
  assert len(flags) > 3 and not missing


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda p: p.parent.name)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--no_such=1"], "--no_such"),
    (["--no_such"], "--no_such"),
    (["stray"], "stray"),
    (["--restarts=some", "--max_restarts=some"], "restarts"),
  ],
)
def test_wrong_flags_are_refused(script, flags, message):
  done = call(script, *COMPLETE[script], *flags, "--", *ARGS)
  assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize(
  ("script", "flags", "training", "message"),
  [
    (ONE_HOST, [], [], "after --"),
    (ONE_HOST, ["--num_processes=0"], ARGS, "--num_processes=0"),
    (ONE_HOST, ["--num_processes=2", "--gpus=0,1,2"], ARGS, "--gpus=0,1,2"),
    (ONE_HOST, ["--cpu_devices=2", "--gpus=0"], ARGS, "not both"),
    (TPU, [], [], "create, install"),
    (TPU, ["dance", *SLICE], [], "dance"),
    (TPU, ["create", "--zone=z"], [], "--name"),
    (TPU, ["create", "--name=n"], [], "--zone"),
    (TPU, ["create", *SLICE], [], "--accelerator_type"),
    (
      TPU,
      ["create", *SLICE, "--accelerator_type=v9-8"],
      [],
      "--runtime_version",
    ),
    (TPU, ["start", *SLICE], NEEDED[:1], "--workdir"),
    (TPU, ["start", *SLICE], ["--config=c", "--workdir=here"], "gs://"),
    (TPU, ["stop", *SLICE], NEEDED, "start"),
    (GKE, WORKLOAD[1:], ARGS, "--workload"),
    (GKE, WORKLOAD[:1] + WORKLOAD[2:], ARGS, "--cluster"),
    (GKE, WORKLOAD[:2], ARGS, "--tpu_type"),
    (GKE, WORKLOAD, NEEDED[1:], "--config"),
    (GKE, WORKLOAD, ["--config=c", "--workdir=/here"], "gs://"),
    (
      GKE,
      [*WORKLOAD, "--docker_image=a", "--base_docker_image=b"],
      ARGS,
      "not both",
    ),
    (SLURM, [], ARGS, "--gpus_per_node"),
    (SLURM, ["--gpus_per_node=h100"], ARGS, "h100:8"),
    (SLURM, ["--gpus_per_node=8"], NEEDED[:1], "--workdir"),
    (JOB, [], NEEDED[1:], "--config"),
  ],
)
def test_missing_flags_are_named(script, flags, training, message):
  done = call(script, *flags, *(["--", *training] if training else []))
  assert done.returncode == 2 and message in done.stderr


def test_one_host_prints_its_processes(tmp_path):
  flags = ["--num_processes=2", "--gpus=4,5,6,7", "--port=21000"]
  lines = dry(tmp_path, ONE_HOST, *flags, training=ARGS)
  for i, line in enumerate(lines):
    assert f"LUMINA_PROCESS_ID={i} " in line
    assert "LUMINA_NUM_PROCESSES=2 " in line
    assert "LUMINA_COORDINATOR=127.0.0.1:21000 " in line
    assert f"CUDA_VISIBLE_DEVICES={('4', '6')[i]}" in line
    assert words(tmp_path, line) == ["python", *TRAIN]
  assert len(lines) == 2
  (line,) = dry(tmp_path, ONE_HOST, "--cpu_devices=4", training=ARGS)
  assert "LUMINA" not in line  # A single process finds others by itself.
  assert "device_count=4" in line and "JAX_PLATFORMS=cpu" in line


def test_tpu_vm_creates_and_deletes_machines(tmp_path):
  kind = "--accelerator_type=v5litepod-16"
  tpus = ["gcloud", "compute", "tpus"]
  where = ["--zone=us-central2-b", "--project=p q"]

  def printed(*flags):
    lines = dry(tmp_path, TPU, *flags, *SLICE, "--project=p q")
    return [words(tmp_path, line) for line in lines]

  assert printed("create", kind, "--spot") == [
    [
      *(*tpus, "tpu-vm", "create", "slice", *where),
      *("--accelerator-type=v5litepod-16", "--spot"),
      "--version=v2-alpha-tpuv5-lite",
    ]
  ]
  assert printed("create", kind, "--queued", "--runtime_version=mine") == [
    [
      *(*tpus, "queued-resources", "create", "slice", "--node-id=slice"),
      *(*where, "--accelerator-type=v5litepod-16", "--runtime-version=mine"),
    ]
  ]
  archive, copy, install = printed("install")
  assert archive[:2] == ["git", "-C"] and archive[-1] == "HEAD"
  assert copy[3:5] == ["tpu-vm", "scp"] and copy[-1] == "--worker=all"
  assert copy[5] in archive[-2] and install[-2] == "--worker=all"
  assert (
    subprocess.run(
      ["bash", "-n", "-c", install[-1].removeprefix("--command=")]
    ).returncode
    == 0
  )
  assert printed("status", "--queued") == [
    [*tpus, "queued-resources", "describe", "slice", *where]
  ]
  assert printed("delete") == [[*tpus, "tpu-vm", "delete", "slice", *where]]
  assert "--worker=3" in printed("logs", "--worker=3")[0]


def test_tpu_vm_starts_and_stops_training(tmp_path):
  """Runs the commands for a host in a home folder like its own."""
  home, record = tmp_path / "home", tmp_path / "record"
  home.mkdir()
  (home / "lumina_jax").symlink_to(ROOT)
  program(
    home / "lumina_venv" / "bin",
    "python",
    f"trap 'exit 0' TERM\nprintf '%s\\0' \"$@\" >{record}.new\n"
    f"mv {record}.new {record}\n{FOREVER}",
  )

  def on_host(action, training=()):
    (line,) = dry(tmp_path, TPU, action, *SLICE, training=training)
    command = words(tmp_path, line)[-1].removeprefix("--command=")
    record.unlink(missing_ok=True)
    return subprocess.run(
      ["bash", "-c", command],
      cwd=home,
      env=with_path(tmp_path, HOME=str(home)),
      capture_output=True,
      timeout=WAIT,
    )

  assert on_host("start", ARGS).returncode == 0
  wait_until(record.exists)
  assert recorded(record) == TRAIN
  again = on_host("start", ARGS)
  assert again.returncode == 1 and b"already running" in again.stderr
  assert on_host("stop").returncode == 0
  wait_until(lambda: not running(home))
  assert (home / "lumina_train.log").exists()


def test_gke_runs_the_command_and_restarts_it(tmp_path):
  (line,) = dry(tmp_path, GKE, *WORKLOAD, "--spot", training=ARGS)
  command = words(tmp_path, line)
  assert command[:3] == ["xpk", "workload", "create"]
  assert {
    *("--workload=run", "--cluster=pods", "--tpu-type=v6e-16", "--spot"),
    *("--num-slices=1", "--max-restarts=50", "--restart-on-exit-codes=1"),
    *("--base-docker-image=python:3.12", f"--script-dir={ROOT}"),
  } < set(command)
  inside = command[-1].removeprefix("--command=")
  assert inside.startswith("pip install")

  folder, record = recorders(tmp_path)
  program(
    folder,
    "python",
    f"trap 'exit 0' TERM\nprintf '%s\\0' \"$@\" >{record}.new\n"
    f"mv {record}.new {record}.train\n{FOREVER}",
  )
  # As in xpk: in a subshell, to which it forwards SIGTERM.
  pod = subprocess.Popen(
    ["bash", "-c", f"({inside}) & echo $!; wait $!; exit $?"],
    cwd=ROOT,
    env=with_path(folder),
    stdout=subprocess.PIPE,
  )
  wait_until(pathlib.Path(f"{record}.train").exists)
  assert recorded(pathlib.Path(f"{record}.train")) == TRAIN
  os.kill(int(pod.stdout.readline()), signal.SIGTERM)
  assert pod.wait(WAIT) == 143  # saved, but not finished
  assert not running(folder / "python")


def test_gke_takes_images(tmp_path):
  for flag in ("--docker_image=a/b:c", "--base_docker_image=a/b:c"):
    (line,) = dry(tmp_path, GKE, *WORKLOAD, flag, training=ARGS)
    command = words(tmp_path, line)
    assert flag.replace("_", "-") in command
    assert command[-1].startswith("--command=exec bash launch/one_host/run.sh")
    base = "base" in flag
    assert any(word.startswith("--script-dir") for word in command) == base


def test_slurm_submits_one_task_a_gpu(tmp_path):
  flags = ["--nodes=2", "--gpus_per_node=h100:4", "--partition=big one"]
  made, line = dry(tmp_path, SLURM, *flags, "--log_dir=/logs", training=ARGS)
  assert made == "mkdir -p /logs"
  command = words(tmp_path, line)
  assert command[0] == "sbatch"
  assert {
    *("--nodes=2", "--gpus-per-node=h100:4", "--ntasks-per-node=4"),
    *("--cpus-per-task=8", "--partition=big one", f"--chdir={ROOT}"),
  } < set(command)
  job = command.index(str(JOB))
  (step,) = dry(
    tmp_path,
    *[JOB, *command[job + 1 : command.index("--")]],
    training=command[command.index("--") + 1 :],
  )
  assert words(tmp_path, step) == [
    *("srun", "--kill-on-bad-exit=1", "--gpu-bind=none", "--label"),
    *("python", *TRAIN),
  ]


def test_the_slurm_job_has_its_directives():
  directives = re.findall(r"^#SBATCH (\S+)$", JOB.read_text(), re.M)
  assert {"--requeue", "--open-mode=append"} < set(directives)
  (signals,) = (d for d in directives if d.startswith("--signal"))
  # To the script only, with a signal that tasks do not handle.
  assert re.fullmatch(r"--signal=B:USR1@\d+", signals)


class Job:
  """A running train.sbatch with a stand-in for srun that waits for a signal."""

  def __init__(self, tmp_path, *flags, step=FOREVER, code=0):
    self.called = tmp_path / "called"
    folder, pid = tmp_path / "slurm", tmp_path / "srun.pid"
    program(
      folder,
      "srun",
      f"trap 'exit {code}' TERM\necho $$ >{pid}\n"
      f"echo srun >>{self.called}\n{step}",
    )
    program(
      folder,
      "scancel",
      f'echo scancel "$@" >>{self.called}; kill -TERM $(<{pid})',
    )
    program(folder, "scontrol", f'echo scontrol "$@" >>{self.called}')
    self.process = subprocess.Popen(
      ["bash", JOB, *flags, "--", *NEEDED],
      cwd=ROOT,
      env=with_path(folder, SLURM_JOB_ID="77", SLURM_CPUS_PER_TASK="8"),
      stderr=subprocess.PIPE,
    )
    self.pid = pid

  def calls(self) -> list[str]:
    text = self.called.read_text() if self.called.exists() else ""
    return text.splitlines()

  def ends(self) -> int:
    _, self.stderr = self.process.communicate(timeout=WAIT)
    return self.process.returncode


def test_the_slurm_job_saves_and_requeues_near_its_limit(tmp_path):
  job = Job(tmp_path)
  wait_until(job.calls)
  job.process.send_signal(signal.SIGUSR1)
  assert job.ends() == 0
  assert job.calls() == [
    *("srun", "scancel --signal=TERM 77", "scontrol requeue 77")
  ]


@pytest.mark.parametrize("code", [0, 1])
def test_a_slurm_job_ended_from_outside_does_not_requeue(tmp_path, code):
  job = Job(tmp_path, code=code)
  wait_until(job.calls)
  job.process.send_signal(signal.SIGTERM)  # SLURM also signals the tasks.
  time.sleep(0.2)
  assert job.process.poll() is None  # It waits until they have saved.
  os.kill(int(job.pid.read_text()), signal.SIGTERM)
  assert job.ends() == code and job.calls() == ["srun"]
  assert not job.stderr


@pytest.mark.parametrize(("restarts", "code"), [(1, 3), (2, 0)])
def test_the_slurm_job_restarts_after_a_failure(tmp_path, restarts, code):
  third = f"[[ $(grep -c srun {tmp_path}/called) == 3 ]] || exit 3"
  flags = [f"--restarts={restarts}", "--restart_delay=0"]
  job = Job(tmp_path, *flags, step=third)
  assert job.ends() == code
  assert job.calls() == ["srun"] * (restarts + 1)


class Host:
  """A running run.sh with a shell program as python."""

  def __init__(self, tmp_path, body, *flags):
    self.folder, self.out = tmp_path, tmp_path / "out"
    self.out.mkdir()
    python = program(
      tmp_path,
      "worker",
      f"out={self.out} i=$LUMINA_PROCESS_ID\n"
      'echo "$i $LUMINA_COORDINATOR $LUMINA_NUM_PROCESSES" >>$out/started.$i\n'
      + body,
    )
    self.process = subprocess.Popen(
      [ONE_HOST, f"--python={python}", *flags, "--", *ARGS],
      env=with_path(tmp_path / "none"),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def starts(self) -> list[list[str]]:
    """LUMINA variables of each start, by process."""
    found = sorted(self.out.glob("started.*"))
    return [line.split() for p in found for line in p.read_text().splitlines()]

  def ends(self) -> int:
    self.stdout, self.stderr = self.process.communicate(timeout=WAIT)
    assert not running(self.folder), "a process still runs"
    return self.process.returncode


def test_one_host_runs_processes_that_can_connect(tmp_path):
  host = Host(tmp_path, "", "--num_processes=3", f"--log_dir={tmp_path}/logs")
  assert host.ends() == 0
  numbers, addresses, counts = zip(*host.starts(), strict=True)
  assert numbers == ("0", "1", "2") and set(counts) == {"3"}
  (address,) = set(addresses)
  assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
  logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
  assert logs == ["process_0.log", "process_1.log", "process_2.log"]


def test_one_host_passes_arguments(tmp_path):
  host = Host(tmp_path, 'printf "%s\\0" "$@"')
  assert host.ends() == 0
  assert host.stdout.split("\0")[:-1] == TRAIN
  assert host.starts() == [[]]  # A single process gets no variables.


def test_one_host_ends_the_others_after_a_failure(tmp_path):
  # The others ignore SIGTERM, and have children that would outlive them.
  body = (
    f"[[ $i != 1 ]] || exit 7\ntrap '' TERM\n"
    f"bash -c '{FOREVER}' {tmp_path}/child &\n{FOREVER}"
  )
  host = Host(tmp_path, body, "--num_processes=3", "--grace=0")
  assert host.ends() == 7
  assert "process 1 failed with exit code 7" in host.stderr


def test_one_host_waits_for_others_to_end(tmp_path):
  body = "[[ $i != 1 ]] || exit 7\nsleep 0.3; echo $i >$out/ended.$i; exit 1"
  host = Host(tmp_path, body, "--num_processes=2", "--grace=30")
  assert host.ends() == 7 and (host.out / "ended.0").exists()


def test_one_host_restarts_all_after_a_failure(tmp_path):
  body = "[[ $i != 0 || $(wc -l <$out/started.0) == 3 ]] || exit 5"
  flags = ["--num_processes=2", "--restart_delay=0"]
  host = Host(tmp_path, body, *flags, "--restarts=2")
  assert host.ends() == 0
  starts = host.starts()
  assert [number for number, *_ in starts] == ["0"] * 3 + ["1"] * 3
  assert [s[1] for s in starts[:3]] == [s[1] for s in starts[3:]]


def test_one_host_gives_up_after_its_restarts(tmp_path):
  host = Host(tmp_path, "exit 5", "--restarts=1", "--restart_delay=0")
  assert host.ends() == 5 and len(host.starts()) == 2


@pytest.mark.parametrize(
  ("sent", "flags", "code"),
  [(signal.SIGTERM, [], 0), (signal.SIGINT, ["--stopped_code=9"], 9)],
)
def test_one_host_forwards_signals_once(tmp_path, sent, flags, code):
  name = sent.name.removeprefix("SIG")
  body = f"""
trap "echo {name} >>$out/signals.$i; stop=1" {name}
touch $out/ready.$i
for ((n = 0; n < 600; n++)); do [[ $stop ]] && break; sleep 0.05; done
sleep 0.2  # A second signal would come now.
"""
  host = Host(tmp_path, body, "--num_processes=2", "--restarts=3", *flags)
  wait_until(lambda: len([*host.out.glob("ready.*")]) == 2)
  host.process.send_signal(sent)
  assert host.ends() == code
  signals = [p.read_text() for p in sorted(host.out.glob("signals.*"))]
  assert signals == [f"{name}\n"] * 2 and len(host.starts()) == 2


def test_one_host_reports_a_failure_while_it_stops(tmp_path):
  body = f"trap 'exit $i' TERM\ntouch $out/ready.$i\n{FOREVER}"
  flags = ["--num_processes=2", "--restarts=3", "--stopped_code=9"]
  host = Host(tmp_path, body, *flags)
  wait_until(lambda: len([*host.out.glob("ready.*")]) == 2)
  host.process.terminate()
  assert host.ends() == 1 and len(host.starts()) == 2
  assert "restart" not in host.stderr


def test_one_host_ends_the_children_of_ended_processes(tmp_path):
  body = f"bash -c '{FOREVER}' {tmp_path}/child &\nexit 0"
  assert Host(tmp_path, body, "--num_processes=2").ends() == 0
