"""How devices share one sequence: the rule, and the arguments it refuses."""

import itertools
import math

import pytest

from lumina_jax.attention.split import (
  GATHER_BYTES,
  Split,
  check_name,
  choose,
  repeated_kv_heads,
  traffic,
)

LONG = 131_072


def auto(context, heads, kv_heads, length=LONG, width=256):
  return choose("auto", context, heads, kv_heads, length, width)


@pytest.mark.parametrize("name", ["auto", "ring", "ulysses"])
def test_any_number_of_devices_has_a_split(name):
  for context, heads, kv_heads in itertools.product(
    (2, 3, 4, 8, 16, 32, 64, 96), (1, 8, 24, 32), (1, 4, 8)
  ):
    kv_heads = math.gcd(heads, kv_heads)
    # So long that "auto" gathers nowhere.
    split = choose(name, context, heads, kv_heads, 10 * LONG, 256)
    assert not split.gather
    assert split.ulysses * split.ring == context
    assert heads % split.ulysses == 0
    repeated = repeated_kv_heads(kv_heads, split.ulysses)
    assert repeated % split.ulysses == 0
    assert heads % repeated == 0


@pytest.mark.parametrize(
  ("context", "heads", "kv_heads", "split"),
  [
    (1, 32, 32, Split()),
    (8, 32, 32, Split(8, 1)),  # the 7B on 8 chips: heads suffice
    (64, 32, 32, Split(32, 2)),  # more devices than heads: a ring of groups
    (16, 32, 8, Split(16, 1)),  # kv heads are repeated
    (6, 32, 32, Split(2, 3)),
    (5, 32, 32, Split(1, 5)),  # nothing in common: a ring alone
  ],
)
def test_the_rule_for_long_sequences(context, heads, kv_heads, split):
  assert auto(context, heads, kv_heads) == split


def test_auto_gathers_short_keys_of_few_heads():
  assert auto(2, 32, 8, length=4096).gather
  assert not auto(2, 32, 8, length=LONG).gather
  assert not auto(8, 32, 32, length=4096).gather  # Ulysses sends less.
  bytes_a_token = 2 * 8 * 256
  most = GATHER_BYTES // bytes_a_token
  assert auto(2, 32, 8, length=most).gather
  assert not auto(2, 32, 8, length=most + 1).gather


def test_auto_sends_least():
  for context, kv_heads in itertools.product((4, 12, 16, 64), (8, 32)):
    common = math.gcd(context, 32)
    all_splits = [
      Split(u, context // u) for u in range(1, common + 1) if not common % u
    ]
    least = min(traffic(s, context, 32, kv_heads) for s in all_splits)
    chosen = auto(context, 32, kv_heads)
    assert traffic(chosen, context, 32, kv_heads) == least


def test_a_name_selects_its_split():
  assert choose("ring", 8, 32, 8, 64, 4) == Split(1, 8)
  assert choose("ulysses", 8, 4, 4, 64, 4) == Split(4, 2)
  assert choose("2", 8, 4, 4, 64, 4) == Split(2, 4)
  assert choose("gather", 8, 4, 4, LONG, 256) == Split(gather=True)


@pytest.mark.parametrize("degree", ["3", "16", "8"])
def test_a_degree_must_divide_devices_and_heads(degree):
  with pytest.raises(ValueError, match=rf"'{degree}'.*use one of \[1, 2, 4\]"):
    choose(degree, 8, 12, 12, LONG, 256)


@pytest.mark.parametrize("name", ["Ring", "", "0", "-2", "2.0", "all_gather"])
def test_unknown_names_are_refused(name):
  with pytest.raises(ValueError, match=rf"'{name}'.* ring, ulysses, gather"):
    check_name(name)
