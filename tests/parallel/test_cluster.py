"""The processes of a run: flags, environment, SLURM, TPU slices."""

import pytest

from lumina_jax.parallel import cluster, processes
from lumina_jax.parallel.cluster import (
  COORDINATOR,
  NUM_PROCESSES,
  PROCESS_ID,
  Cluster,
)

ENVIRON = {COORDINATOR: "host:1234", NUM_PROCESSES: "4", PROCESS_ID: "2"}
STEP = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_STEP_NUM_NODES": "4",
  "SLURM_STEP_NODELIST": "node[007-009,012],other4",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "0",
}


def test_flags_and_environment_are_equivalent():
  expected = Cluster("host:1234", 4, 2)
  assert cluster.from_flags("host:1234", 4, 2, {}) == expected
  assert cluster.from_flags("", 0, -1, ENVIRON) == expected
  assert cluster.from_flags("host:1234", 4, 2, ENVIRON) == expected
  mixed = {name: ENVIRON[name] for name in (COORDINATOR, NUM_PROCESSES)}
  assert cluster.from_flags("", 0, 2, mixed) == expected
  first = cluster.from_flags("", 0, 0, mixed)
  assert first == Cluster("host:1234", 4, 0)  # 0 counts as given.


def test_without_flags_and_environment_there_is_no_cluster():
  assert cluster.from_flags("", 0, -1, {}) is None
  assert cluster.from_flags("", 0, -1, dict.fromkeys(ENVIRON, "")) is None


def test_one_process_needs_no_others():
  assert cluster.from_flags("", 1, -1, {}).num_processes == 1
  environ = {NUM_PROCESSES: "1", PROCESS_ID: "0"}
  assert cluster.from_flags("", 0, -1, environ).num_processes == 1


@pytest.mark.parametrize(
  ("flags", "environ", "message"),
  [
    (("host:1", 0, -1), {}, "LUMINA_COORDINATOR=host:1 is.*PROCESSES and.*ID"),
    (("", 2, 1), {}, r"PROCESSES=2 .*_ID=1 is given, but not .*COORDINATOR:"),
    (("", 0, -1), {PROCESS_ID: "0"}, "_ID=0 is.*COORDINATOR and .*PROCESSES"),
    (("host:1", 2, 2), {}, r"LUMINA_PROCESS_ID=2: processes count from 0 to 1"),
    (("host:1", 2, -2), {}, r"LUMINA_PROCESS_ID=-2: processes count"),
    (("host", 2, 0), {}, r"LUMINA_COORDINATOR='host': write host:port"),
    (("", 8, -1), ENVIRON, r"flag says 8, but LUMINA_NUM_PROCESSES=4"),
    (("", 0, 0), ENVIRON, r"flag says 0, but LUMINA_PROCESS_ID=2"),
    (
      ("", 0, -1),
      ENVIRON | {NUM_PROCESSES: "four"},
      r"='four': must be a number",
    ),
    (("", 1, 1), {}, COORDINATOR),
  ],
)
def test_incomplete_or_contradictory_values_are_refused(
  flags, environ, message
):
  with pytest.raises(ValueError, match=message):
    cluster.from_flags(*flags, environ)


def test_tasks_of_a_slurm_step():
  assert cluster.from_slurm(STEP) == Cluster("node007:61441", 4, 3, None)
  for nodes, host in (("a", "a"), ("a,b", "a"), ("n-1-[3,5]", "n-1-3")):
    found = cluster.from_slurm(STEP | {"SLURM_STEP_NODELIST": nodes})
    assert found.coordinator_address == f"{host}:61441"


def test_tasks_of_one_host_use_one_accelerator_each():
  shared = STEP | {"SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "3"}
  assert cluster.from_slurm(shared).local_device_ids == [3]
  several = shared | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
  assert cluster.from_slurm(several).local_device_ids == [3]
  one = shared | {"CUDA_VISIBLE_DEVICES": "3"}
  assert cluster.from_slurm(one).local_device_ids is None


def test_a_shell_on_an_allocation_is_one_process():
  alone = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
  assert cluster.from_slurm(alone) is None
  assert cluster.from_slurm(alone | {"SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.fixture
def slices(monkeypatch):
  """Replaces JAX's TPU clusters, which query a metadata server."""

  class Slice:
    hosts, present, queries = 4, True, 0

    @classmethod
    def is_env_present(cls):
      cls.queries += 1
      return cls.present

    @classmethod
    def get_process_count(cls):
      if cls.hosts is None:
        raise ConnectionError("no route to the server")
      return cls.hosts

  monkeypatch.setattr(cluster, "TPU_CLUSTERS", (Slice,))
  return Slice


def tpu(monkeypatch, platforms="tpu,cpu"):
  class Config:
    jax_platforms = platforms

  class Jax:
    config = Config

  monkeypatch.setattr(cluster, "jax", Jax)


@pytest.mark.parametrize("platforms", ["cpu", "cuda,cpu", "", None])
def test_without_a_tpu_no_server_is_queried(slices, monkeypatch, platforms):
  tpu(monkeypatch, platforms)
  assert cluster.slice_hosts({}) == 1
  assert not slices.queries


def test_hosts_of_a_slice(slices, monkeypatch):
  tpu(monkeypatch)
  assert cluster.slice_hosts({}) == 4
  assert cluster.slice_hosts({"TPU_PROCESS_BOUNDS": "1,1,1"}) == 1
  slices.present = False
  assert cluster.slice_hosts({}) == 1


def test_a_metadata_server_that_fails_is_reported(slices, monkeypatch):
  tpu(monkeypatch)
  slices.hosts = None
  with pytest.raises(
    OSError, match=rf"no route to the server.*{NUM_PROCESSES}=1"
  ):
    cluster.slice_hosts({})


def test_initialize_does_nothing_for_one_process(monkeypatch):
  for name in ENVIRON:
    monkeypatch.delenv(name, raising=False)

  def never(*_, **__):
    raise AssertionError("connected")

  monkeypatch.setattr(processes.jax.distributed, "initialize", never)
  processes.initialize()
  processes.initialize(num_processes=1)
  monkeypatch.setenv(NUM_PROCESSES, "2")
  with pytest.raises(ValueError, match=f"{COORDINATOR} and {PROCESS_ID}"):
    processes.initialize()


def test_one_process_needs_no_communication(capsys):
  assert processes.count() == 1 and processes.is_first()
  with processes.only_first_prints():
    print("a")
  assert capsys.readouterr().out == "a\n"
  processes.barrier("here")
  processes.check_equal("whatever")
  assert processes.exchange("x") == ["x"]
  assert processes.broadcast(5) == 5
  processes.finish()
  with pytest.raises(SystemExit) as exit:
    processes.finish(2)
  assert exit.value.code == 2
  with pytest.raises(KeyError, match="as it was raised"):
    processes.on_first(lambda: {}["as it was raised"])
