"""The names of a store's files: what a layout gives it knows again, and each name is of one sort."""

from __future__ import annotations

import pytest

from cache_store.layout import IN_BUCKET, IN_DIRECTORY, Layout, Sort, key_in
from tests.cache_store.blocks import make_key

KEY = make_key(0)
LAYOUTS = [(IN_DIRECTORY, IN_BUCKET), (IN_BUCKET, IN_DIRECTORY)]


@pytest.mark.parametrize(("layout", "other"), LAYOUTS)
def test_a_layout_knows_its_own_names(layout: Layout, other: Layout) -> None:
    assert layout.sort_of(layout.entry(KEY)) is Sort.ENTRY and layout.key_at(layout.entry(KEY)) == KEY
    assert layout.sort_of(layout.new_staged()) is Sort.STAGED
    assert layout.sort_of(layout.new_quarantined(KEY)) is Sort.QUARANTINED


@pytest.mark.parametrize(("layout", "other"), LAYOUTS)
def test_an_entry_of_another_layout_is_misplaced_and_what_its_writers_stage_is_a_strangers(
    layout: Layout, other: Layout
) -> None:
    astray = other.entry(KEY)
    assert layout.sort_of(astray) is Sort.MISPLACED
    assert layout.key_at(astray) is None and key_in(astray) == KEY
    assert layout.sort_of(other.new_staged()) is None


@pytest.mark.parametrize(("layout", "other"), LAYOUTS)
def test_new_names_are_new(layout: Layout, other: Layout) -> None:
    assert len({layout.new_staged() for _ in range(9)} | {layout.new_quarantined(KEY) for _ in range(9)}) == 18


@pytest.mark.parametrize(("layout", "other"), LAYOUTS)
def test_what_looks_like_a_name_is_a_strangers(layout: Layout, other: Layout) -> None:
    for name in (layout.entry(KEY), layout.new_staged(), layout.new_quarantined(KEY)):
        for like in (f"{name}x", f"x/{name}", name.upper(), f"{name}\n", name[:-1], f"/{name}"):
            assert layout.sort_of(like) is None and key_in(like) is None
