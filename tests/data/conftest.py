"""Folders of shards that tests share."""

import shutil

import pytest
from support.shards import ENCODED, features, make_job, moments, write


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
  """Pixels and text of 20 records in three shards; record 8 is bad."""
  folder = tmp_path_factory.mktemp("shards") / "plain"
  assert write(folder, make_job(bad=(8,))) == []
  return folder


@pytest.fixture
def copy(plain, tmp_path):
  """A copy of the same folder, to be broken."""
  return shutil.copytree(plain, tmp_path / "copy")


@pytest.fixture(scope="session")
def encoded(tmp_path_factory):
  """Latents and features of 20 records with two captions each."""
  folder = tmp_path_factory.mktemp("shards") / "encoded"
  job = make_job(20, each=2, moments=moments, features=features)
  assert write(folder, job, settings=ENCODED) == []
  return folder
