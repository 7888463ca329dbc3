import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reuse_algos.data.hashing import uniform_floats, uniform_ints, view_hash

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """Vigna's splitmix64.c in unbounded integers: the output for the state before the step."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z // 2**27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z // 2**31)


def oracle(seed: int, key: int, view: int, salt: int) -> int:
    h = splitmix64(seed % 2**64)
    for part in (salt, key, view):
        h = splitmix64(h ^ (part % 2**64))
    return h


def test_the_oracle_gives_the_published_sequence():
    golden = 0x9E3779B97F4A7C15
    outputs = [splitmix64((1234567 + step * golden) % 2**64) for step in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


int64s = st.integers(-(2**63), 2**63 - 1)


@given(st.integers(-(2**70), 2**70), st.lists(st.tuples(int64s, int64s), min_size=1, max_size=20), int64s)
@settings(max_examples=60, deadline=None)
def test_hash_equals_the_big_integer_oracle(seed, pairs, salt):
    keys, views = torch.tensor(pairs).T
    found = view_hash(seed, keys, views, salt)
    assert found.dtype == torch.int64
    assert [value & MASK for value in found.tolist()] == [oracle(seed, key, view, salt) for key, view in pairs]


def test_hash_broadcasts_and_leaves_its_inputs_alone():
    keys, views = torch.arange(3)[:, None], torch.arange(4)
    found = view_hash(1, keys, views, 2)
    assert found.shape == (3, 4)
    assert found[2, 3] == view_hash(1, torch.tensor(2), torch.tensor(3), 2)
    assert keys.flatten().tolist() == [0, 1, 2]
    assert len(found.unique()) == 12


@given(st.integers(0, MASK), st.integers(1, 2**31))
@settings(max_examples=200, deadline=None)
def test_uniform_ints_are_the_scaled_upper_half(bits, upper):
    signed = torch.tensor(bits - 2**64 if bits >> 63 else bits)
    assert int(uniform_ints(signed, upper)) == ((bits >> 32) * upper) >> 32
    assert float(uniform_floats(signed)) == (bits >> 11) / 2**53


def test_neighbouring_keys_views_and_salts_give_independent_uniform_numbers():
    keys, views = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    numbers = [uniform_ints(view_hash(0, keys, views, salt), 8).flatten() for salt in (0, 1)]
    grid = numbers[0].view(200, 200)
    pairs = {
        "salts": (numbers[0], numbers[1]),
        "keys": (grid[:-1].flatten(), grid[1:].flatten()),
        "views": (grid[:, :-1].flatten(), grid[:, 1:].flatten()),
    }
    for what, (a, b) in pairs.items():
        counts = torch.bincount(a * 8 + b, minlength=64).numpy()
        # The hash is fixed, so this either always passes or never does.
        assert stats.chisquare(counts).pvalue > 0.001, what
    floats = uniform_floats(view_hash(0, keys, views, 0)).flatten().numpy()
    assert floats.dtype == np.float64
    assert stats.kstest(floats, "uniform").pvalue > 0.001


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_hash_is_the_same_on_a_gpu():
    keys, views = torch.randint(-(2**63), 2**63 - 1, (2, 1000), generator=torch.Generator().manual_seed(1))
    on_gpu = view_hash(5, keys.cuda(), views.cuda(), 3)
    assert torch.equal(on_gpu.cpu(), view_hash(5, keys, views, 3))
    assert torch.equal(uniform_floats(on_gpu).cpu(), uniform_floats(view_hash(5, keys, views, 3)))
