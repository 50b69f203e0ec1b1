import pytest
import torch

from lit_tfm.nn.cache import KVCache


def test_extend_gives_all_there_is_without_copying():
    layer = KVCache(6).layer(0)
    first, second = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 1, 5)
    keys, values = layer.extend(first, -first, 0)
    assert torch.equal(keys, first)
    again, values = layer.extend(second, -second, 4)
    assert torch.equal(again, torch.cat((first, second), dim=2))
    assert torch.equal(values, -again)
    assert again.data_ptr() == keys.data_ptr()


def test_too_many_tokens_are_refused_before_anything_is_written():
    cache = KVCache(4)
    cache.advance(3)
    with pytest.raises(ValueError, match=r"5 tokens do not fit a KVCache\(4\)"):
        cache.see(None, 1, 2)


def test_seen_is_remembered_and_starts_with_the_first_mask():
    cache = KVCache(5)
    assert cache.see(None, 2, 2) is None
    cache.advance(2)
    mask = torch.tensor([[True], [False]])
    assert cache.see(mask, 2, 1).tolist() == [[True, True, True], [True, True, False]]
    cache.advance(1)
    assert cache.see(None, 2, 1).tolist() == [[True, True, True, True], [True, True, False, True]]
    again = cache.see(torch.tensor([[False], [True]]), 2, 1)  # a second mask does not forget the first
    assert again.tolist() == [[True, True, True, False], [True, True, False, True]]
    cache.truncate(2)
    assert cache.length == 2
    assert cache.see(None, 2, 1).all()


def test_reorder_moves_rows_of_every_part():
    cache, rows = KVCache(3), torch.tensor([1, 1, 0])
    keys = torch.randn(2, 1, 1, 4)
    cache.layer(0).extend(keys, keys + 1, 0)
    cache.layer(0).memory = (keys + 2, keys + 3)
    cache.see(torch.tensor([[True], [False]]), 2, 1)
    assert cache.embedded(keys[:, 0]).size(1) == 0
    cache.advance(1)
    cache.reorder(rows)
    layer = cache.layer(0)
    assert torch.equal(layer.keys[:, :, :1], keys[rows])
    assert torch.equal(layer.values[:, :, :1], keys[rows] + 1)
    assert torch.equal(layer.memory[0], keys[rows] + 2)
    assert torch.equal(layer.memory[1], keys[rows] + 3)
    assert cache.seen[:, 0].tolist() == [False, False, True]
    assert torch.equal(cache.embedded(keys[rows, 0]), keys[rows, 0])


def test_reorder_among_rows_of_one_memory_leaves_it_and_what_is_not_written():
    cache, rows = KVCache(3), torch.tensor([1, 0])
    keys = torch.randn(2, 1, 2, 4)
    layer = cache.layer(0)
    layer.extend(keys, keys + 1, 0)
    layer.memory = (keys + 2, keys + 3)
    cache.embedded(keys[:, 0])
    cache.advance(2)
    place = layer.keys.data_ptr()
    cache.reorder(rows, memory=False)
    assert torch.equal(layer.keys[:, :, :2], keys[rows])
    assert torch.equal(layer.values[:, :, :2], keys[rows] + 1)
    assert torch.equal(layer.memory[0], keys + 2)
    assert torch.equal(cache.embedded(keys[:, 0, :1]), keys[rows, 0])
    assert layer.keys.data_ptr() == place  # no new buffers for each token of a search
