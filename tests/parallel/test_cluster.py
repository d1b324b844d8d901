"""Which processes make up a run."""

import pytest

from lumina_jax.parallel import cluster, processes
from lumina_jax.parallel.cluster import COORDINATOR, COUNT, NUMBER, Place

TOLD = {COORDINATOR: "host:1234", COUNT: "4", NUMBER: "2"}
STEP = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_STEP_NUM_NODES": "4",
  "SLURM_STEP_NODELIST": "node[007-009,012],other4",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "0",
}


def test_flags_and_environment_say_the_same():
  place = Place("host:1234", 4, 2)
  assert cluster.told("host:1234", 4, 2, {}) == place
  assert cluster.told("", 0, -1, TOLD) == place
  assert cluster.told("host:1234", 4, 2, TOLD) == place
  mixed = {name: TOLD[name] for name in (COORDINATOR, COUNT)}
  assert cluster.told("", 0, 2, mixed) == place
  first = cluster.told("", 0, 0, mixed)
  assert first == Place("host:1234", 4, 0)  # 0 is a number, and not nothing.


def test_nothing_said_is_nothing():
  assert cluster.told("", 0, -1, {}) is None
  assert cluster.told("", 0, -1, dict.fromkeys(TOLD, "")) is None


def test_one_process_needs_no_others():
  assert cluster.told("", 1, -1, {}).count == 1
  assert cluster.told("", 0, -1, {COUNT: "1", NUMBER: "0"}).count == 1


@pytest.mark.parametrize(
  ("given", "environ", "message"),
  [
    (("host:1", 0, -1), {}, f"{COORDINATOR}=host:1 is.*{COUNT} and {NUMBER}"),
    (("", 2, 1), {}, rf"{COUNT}=2 {NUMBER}=1 is given, but not {COORDINATOR}:"),
    (("", 0, -1), {NUMBER: "0"}, f"{NUMBER}=0 is.*{COORDINATOR} and {COUNT}"),
    (("host:1", 2, 2), {}, r"LUMINA_PROCESS_ID=2: processes count from 0 to 1"),
    (("host:1", 2, -2), {}, r"LUMINA_PROCESS_ID=-2: processes count"),
    (("host", 2, 0), {}, r"LUMINA_COORDINATOR='host': write host:port"),
    (("", 8, -1), TOLD, r"8 was asked for, but LUMINA_NUM_PROCESSES=4"),
    (("", 0, 0), TOLD, r"0 was asked for, but LUMINA_PROCESS_ID=2"),
    (("", 0, -1), TOLD | {COUNT: "four"}, r"='four': must be a number"),
    (("", 1, 1), {}, COORDINATOR),
  ],
)
def test_half_told_is_an_error(given, environ, message):
  with pytest.raises(ValueError, match=message):
    cluster.told(*given, environ)


def test_tasks_of_a_slurm_step():
  place = cluster.of_slurm(STEP)
  assert place == Place("node007:61441", 4, 3, None)
  for nodes, host in (("a", "a"), ("a,b", "a"), ("n-1-[3,5]", "n-1-3")):
    place = cluster.of_slurm(STEP | {"SLURM_STEP_NODELIST": nodes})
    assert place.coordinator == f"{host}:61441"


def test_tasks_that_share_a_host_share_its_accelerators_out():
  shared = STEP | {"SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "3"}
  assert cluster.of_slurm(shared).devices == [3]
  several = shared | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
  assert cluster.of_slurm(several).devices == [3]
  one = shared | {"CUDA_VISIBLE_DEVICES": "3"}
  assert cluster.of_slurm(one).devices is None


def test_a_shell_on_an_allocation_is_alone():
  alone = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
  assert cluster.of_slurm(alone) is None
  assert cluster.of_slurm(alone | {"SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.fixture
def slices(monkeypatch):
  """Stands for what JAX finds on TPU hosts; nobody asks a real server."""
  asked = []

  class Slice:
    hosts, there = 4, True

    @classmethod
    def is_env_present(cls):
      asked.append("there?")
      return cls.there

    @classmethod
    def get_process_count(cls):
      asked.append("how many?")
      if cls.hosts is None:
        raise ConnectionError("no route to the server")
      return cls.hosts

  monkeypatch.setattr(cluster, "SLICES", (Slice,))
  Slice.asked = asked
  return Slice


def tpu(monkeypatch, platforms="tpu,cpu"):
  class Config:
    jax_platforms = platforms

  class Jax:
    config = Config

  monkeypatch.setattr(cluster, "jax", Jax)


@pytest.mark.parametrize("platforms", ["cpu", "cuda,cpu", "", None])
def test_without_a_tpu_nobody_is_asked(slices, monkeypatch, platforms):
  tpu(monkeypatch, platforms)
  assert cluster.hosts_of_slice({}) == 1
  assert not slices.asked


def test_hosts_of_a_slice(slices, monkeypatch):
  tpu(monkeypatch)
  assert cluster.hosts_of_slice({}) == 4
  assert cluster.hosts_of_slice({"TPU_PROCESS_BOUNDS": "1,1,1"}) == 1
  slices.there = False
  assert cluster.hosts_of_slice({}) == 1


def test_a_tpu_host_that_cannot_ask_says_what_to_set(slices, monkeypatch):
  tpu(monkeypatch)
  slices.hosts = None
  with pytest.raises(OSError, match=rf"no route to the server.*{COUNT}=1"):
    cluster.hosts_of_slice({})


def test_start_does_nothing_for_one_process(monkeypatch):
  for name in TOLD:
    monkeypatch.delenv(name, raising=False)

  def never(*_, **__):
    raise AssertionError("joined somebody")

  monkeypatch.setattr(processes.jax.distributed, "initialize", never)
  processes.start()
  processes.start(count=1)
  monkeypatch.setenv(COUNT, "2")
  with pytest.raises(ValueError, match=f"{COORDINATOR} and {NUMBER}"):
    processes.start()


def test_in_one_process_everything_is_agreed(capsys):
  assert processes.count() == 1 and processes.is_first()
  processes.say("a", 1)
  with processes.one_voice():
    print("b")
  assert capsys.readouterr().out == "a 1\nb\n"
  processes.barrier("here")
  processes.agree("whatever")
  assert processes.exchange("x") == ["x"]
  assert processes.any_of(True) and not processes.any_of(False)
  assert processes.first_says(5) == 5
  processes.finish()
  with pytest.raises(SystemExit) as left:
    processes.finish(2)
  assert left.value.code == 2
  with pytest.raises(KeyError, match="as it was raised"):
    processes.on_first(lambda: {}["as it was raised"])
