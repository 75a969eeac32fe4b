"""Contested names: the first in order keeps them, all others get one of their own."""

from __future__ import annotations

import hashlib

from transforms.unique_image_ids import settle, stem


def suffix(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def test_the_first_in_order_keeps_its_name():
    claims = [(5, "k", "b.tar", 0), (2, "k", "a.tar", 3), (9, "k", "b.tar", 7)]
    assert list(settle(claims)) == [
        (5, f"k-{suffix(chr(10).join(('b.tar', '0')))}"),
        (9, f"k-{suffix(chr(10).join(('b.tar', '7')))}"),
    ]


def test_a_name_alone_is_left():
    assert list(settle([(5, "k", "b.tar", 0)])) == []


def test_a_made_name_never_takes_one_that_is_there():
    made = f"k-{suffix('b.tar' + chr(10) + '0')}"
    claims = [(0, "k", "a.tar", 0), (1, "k", "b.tar", 0), (2, made, "c.tar", 0)]
    assert stem(made) == stem("k") == "k"
    ((rank, name),) = settle(claims)
    assert rank == 1
    assert name not in ("k", made)
    assert stem(name) == "k"


def test_many_contested_names_stay_different():
    claims = [(rank, "k", f"{rank}.tar", 0) for rank in range(3000)]
    names = ["k", *(name for _, name in settle(claims))]
    assert len(set(names)) == 3000
