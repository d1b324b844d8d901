"""Writes the shards of a job that are missing; processes share the work."""

from collections.abc import Iterable, Iterator, Sequence

from data_pipelines.bad_records import BadRecordCounter
from data_pipelines.shard_folder import BadRecordInfo
from data_pipelines.shard_job import ShardJob
from data_pipelines.shard_record import ShardRecord
from data_pipelines.shard_writer import ShardWriter
from lumina_jax.files.progress import Progress


def write_shards(
  job: ShardJob,
  writer: ShardWriter,
  max_bad: float,
  errors: Sequence[str] = (),
  process: int = 0,
  processes: int = 1,
) -> list[str]:
  """Writes shards process, process + processes, ... unless they exist.

  Args:
    job: content of the shards.
    writer: their folder.
    max_bad: largest share of bad records.
    errors: messages of items of the source that could not be scanned; they
      count as bad records.
    process: number of this process.
    processes: number of processes that share the work.

  Returns:
    Files of other processes that are missing; [] = the folder is complete.

  Raises:
    OSError: if the disk is full, or too many records are bad.
    ValueError: if there is no such process, or the folder has shards of other
      settings.
  """
  check_process(process, processes)
  # All processes know the errors of the source; they belong to no shard.
  bad_counter(max_bad).add(errors, job.total + len(errors))
  counter = bad_counter(max_bad)
  own = range(process, job.shards, processes)
  with writer.lock():
    complete = {n: shard for n in own if (shard := writer.find(n))}
    bad = [_message(bad) for shard in complete.values() for bad in shard.bad]
    counter.add(
      bad, sum(shard.records for shard in complete.values()) + len(bad)
    )
    if complete:
      print(f"{len(complete)} shards exist already", flush=True)
    if job.features is not None and not writer.has_empty:
      writer.write_empty(job.features([""])[0])
    _write(job, writer, counter, [n for n in own if n not in complete])
    return writer.finish(errors)


def check_process(process: int, processes: int) -> None:
  """Checks the number of a process.

  Raises:
    ValueError: unless it is from 0 to processes - 1.
  """
  if not 0 <= process < processes:
    raise ValueError(
      f"--process_id={process} --num_processes={processes}: processes are "
      "numbered from 0 to num_processes - 1"
    )


def bad_counter(max_bad: float) -> BadRecordCounter:
  """Counts the bad records of this command.

  Raises:
    ValueError: if max_bad is not a share.
  """
  return BadRecordCounter(max_bad, option="--max_bad", log=False)


def _write(
  job: ShardJob,
  writer: ShardWriter,
  counter: BadRecordCounter,
  numbers: list[int],
) -> None:
  total = sum(len(job.draws(number)) for number in numbers)
  with Progress("encoding", total, unit="records") as bar:
    done = 0

    def counted(
      records: Iterable[ShardRecord | BadRecordInfo],
    ) -> Iterator[ShardRecord | BadRecordInfo]:
      nonlocal done
      for record in records:
        bad = isinstance(record, BadRecordInfo)
        counter.add([_message(record)] if bad else [], 1)
        yield record
        done += 1
        bar.show(done, f"{counter.count} bad" if counter.count else "")

    for number in numbers:
      writer.write(number, counted(job.records(number)))


def _message(bad: BadRecordInfo) -> str:
  return f"{bad.name} ({bad.reason})"
