"""What only object storage can suffer: no answer, no permission, damage, other processes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url
from pydantic import ByteSize

import cache_store.codec
from cache_store.codec import encode
from cache_store.errors import UnusableTier
from cache_store.store import TieredStore
from cache_store.tiers.base import TierCounters
from cache_store.tiers.bucket import without_secrets
from cache_store.tiers.cooloff import FIRST_S, LONGEST_S, CoolOff
from cache_store.tiers.medium import MAX_QUARANTINED
from cache_store.tiers.memory import MemoryTier
from cache_store.tiers.objects import ObjectsTier
from configs import schema
from tests.cache_store.blocks import make_block, make_key, same
from tests.cache_store.damages import DAMAGES, flip
from tests.cache_store.endpoint import Endpoint, endpoint

__all__ = ["endpoint"]

BLOCK = make_block()
ENTRY_BYTES = len(encode(BLOCK))
PATIENCE_S = 0.2


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def open_at(root: Path, max_bytes: int = 2**20) -> ObjectsTier:
    return ObjectsTier(root.as_uri(), max_bytes)


def path_of(root: Path, key: int = 0) -> Path:
    name = make_key(key).hex
    return root / name[:2] / f"{name}.safetensors"


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_an_entry_lies_under_its_name_and_nothing_else_stays(tmp_path: Path) -> None:
    open_at(tmp_path).put(BLOCK)
    assert path_of(tmp_path).read_bytes() == encode(BLOCK)
    assert files_below(tmp_path) == [path_of(tmp_path)]


def test_entries_outlive_the_tier_and_are_seen_by_others(tmp_path: Path) -> None:
    one, other = open_at(tmp_path), open_at(tmp_path)
    one.put(BLOCK)
    assert same(other.get(BLOCK.key), BLOCK) and other.num_bytes == ENTRY_BYTES
    late = open_at(tmp_path)
    assert list(late.keys()) == [BLOCK.key] and late.num_bytes == ENTRY_BYTES
    one.discard(BLOCK.key)
    assert late.get(BLOCK.key) is None and late.num_bytes == 0
    assert late.counters == TierCounters()


def test_of_many_writers_one_creates_and_none_writes_again(tmp_path: Path) -> None:
    tiers = [open_at(tmp_path) for _ in range(4)]
    start = threading.Barrier(len(tiers))
    left: list[object] = []

    def write(tier: ObjectsTier) -> None:
        start.wait()
        left.append(tier.put(BLOCK))

    threads = [threading.Thread(target=write, args=(tier,)) for tier in tiers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert left == [()] * len(tiers)
    created = path_of(tmp_path).stat()
    assert tiers[0].put(BLOCK) == ()
    assert path_of(tmp_path).stat().st_ino == created.st_ino
    assert [tier.num_bytes for tier in tiers] == [ENTRY_BYTES] * len(tiers)
    assert same(tiers[1].get(BLOCK.key), BLOCK)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_a_miss_once_and_set_aside(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    tier = open_at(tmp_path)
    tier.put(BLOCK)
    damaged = damage(path_of(tmp_path).read_bytes())
    path_of(tmp_path).write_bytes(damaged)
    assert tier.get(BLOCK.key) is None
    assert tier.get(BLOCK.key) is None
    assert tier.counters == TierCounters(corrupt=1)
    assert [path.read_bytes() for path in (tmp_path / "quarantine").iterdir()] == [damaged]
    assert not path_of(tmp_path).exists() and tier.num_bytes == 0
    assert tier.put(BLOCK) == () and same(tier.get(BLOCK.key), BLOCK)


def test_a_put_replaces_what_is_damaged_unseen(tmp_path: Path) -> None:
    tier = open_at(tmp_path)
    tier.put(BLOCK)
    path_of(tmp_path).write_bytes(flip(encode(BLOCK)))
    assert tier.put(BLOCK) == ()
    assert same(tier.get(BLOCK.key), BLOCK) and tier.counters == TierCounters()


def test_quarantine_keeps_the_newest_few_and_no_stranger_leaves(tmp_path: Path) -> None:
    tier = open_at(tmp_path)
    stranger = tmp_path / "quarantine" / "notes.txt"
    stranger.parent.mkdir()
    stranger.write_text("mine")
    for key in range(MAX_QUARANTINED + 3):
        tier.put(make_block(key))
        path_of(tmp_path, key).write_bytes(b"damaged")
        os.utime(path_of(tmp_path, key), (key, key))
        assert tier.get(make_key(key)) is None
    names = {path.name[:64] for path in (tmp_path / "quarantine").iterdir() if path != stranger}
    assert names == {make_key(key).hex for key in range(3, MAX_QUARANTINED + 3)}
    assert stranger.read_text() == "mine"


def test_another_format_version_is_a_miss_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = open_at(tmp_path)
    with monkeypatch.context() as other_version:
        other_version.setattr(cache_store.codec, "FORMAT_VERSION", 999)
        tier.put(BLOCK)
    assert tier.get(BLOCK.key) is None
    assert tier.counters == TierCounters(other_version=1)
    assert path_of(tmp_path).exists()


def test_opening_looks_into_no_entry_and_counts_no_stranger(tmp_path: Path) -> None:
    open_at(tmp_path).put(BLOCK)
    path_of(tmp_path).write_bytes(b"damaged")
    name = path_of(tmp_path).name
    strangers = [tmp_path / name, tmp_path / "zz" / name, tmp_path / "ab" / "cd" / name, tmp_path / "README"]
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_text("mine")
    tier = open_at(tmp_path, max_bytes=10)
    assert list(tier.keys()) == [BLOCK.key] and tier.num_bytes == len(b"damaged")
    assert tier.counters == TierCounters()
    assert all(stranger.read_text() == "mine" for stranger in strangers)


def test_opening_with_a_smaller_budget_drops_the_first_written(tmp_path: Path) -> None:
    before = open_at(tmp_path)
    for key in range(4):
        before.put(make_block(key))
        os.utime(path_of(tmp_path, key), (key, key))
    after = open_at(tmp_path, 2 * ENTRY_BYTES)
    assert list(after.keys()) == [make_key(2), make_key(3)]
    assert sorted(files_below(tmp_path)) == sorted([path_of(tmp_path, 2), path_of(tmp_path, 3)])
    assert after.num_bytes == 2 * ENTRY_BYTES and after.counters == TierCounters(evictions=2)


def test_what_others_wrote_counts_as_used_when_it_is_first_seen(tmp_path: Path) -> None:
    mine, theirs = open_at(tmp_path, 3 * ENTRY_BYTES), open_at(tmp_path, 3 * ENTRY_BYTES)
    mine.put(make_block(0))
    mine.put(make_block(1))
    mine.get(make_key(0))
    theirs.put(make_block(2))
    mine.put(make_block(3))
    assert list(mine.keys()) == [make_key(2), make_key(3), make_key(0)]
    assert not path_of(tmp_path, 1).exists() and mine.num_bytes == 3 * ENTRY_BYTES


def test_entries_live_in_a_bucket_of_s3(tmp_path: Path, s3_bucket: str) -> None:
    url = f"{s3_bucket}/{tmp_path.name}/a folder"
    one, other = ObjectsTier(url, 3 * ENTRY_BYTES), ObjectsTier(url, 3 * ENTRY_BYTES)
    for key in range(4):
        assert one.put(make_block(key)) == ()
    assert one.put(make_block(3)) == () and make_key(3) in one
    assert one.get(make_key(0)) is None and one.counters == TierCounters(evictions=1)
    assert all(same(other.get(make_key(key)), make_block(key)) for key in range(1, 4))
    other.discard(make_key(1))
    assert one.get(make_key(1)) is None and make_key(1) not in one
    assert set(ObjectsTier(url, 2**20).keys()) == {make_key(2), make_key(3)}


def test_a_damaged_object_of_s3_is_set_aside(tmp_path: Path, s3_bucket: str) -> None:
    url = f"{s3_bucket}/{tmp_path.name}"
    tier, bucket = ObjectsTier(url, 2**20), from_url(url)
    tier.put(BLOCK)
    obstore.put(bucket, f"{BLOCK.key.hex[:2]}/{BLOCK.key.hex}.safetensors", flip(encode(BLOCK)))
    assert tier.get(BLOCK.key) is None and tier.get(BLOCK.key) is None
    assert tier.counters == TierCounters(corrupt=1) and tier.num_bytes == 0
    (aside,) = [item["path"] for page in obstore.list(bucket) for item in page]
    assert aside.startswith(f"quarantine/{BLOCK.key.hex}.")
    assert bytes(obstore.get(bucket, aside).bytes()) == flip(encode(BLOCK))
    assert tier.put(BLOCK) == () and same(tier.get(BLOCK.key), BLOCK)


def test_a_closed_port_is_asked_once_and_a_run_goes_on(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}")
        tier = ObjectsTier(s3_bucket, 2**20, PATIENCE_S, clock=clock)
        store = TieredStore([MemoryTier(2**20), tier])
        for number in range(50):
            assert store.get(make_key(number)) is None
        store.put(BLOCK)
        assert same(store.get(BLOCK.key), BLOCK)
    assert BLOCK.key not in tier and tier.put(BLOCK) == (BLOCK,)
    assert tier.counters == TierCounters(read_errors=1, skipped=52)
    assert "no answer, left alone for 1 s" in caplog.text and "secret" not in caplog.text


def test_an_endpoint_that_accepts_and_never_answers_is_a_miss(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tier = ObjectsTier(s3_bucket, 2**20, PATIENCE_S, clock=clock)
        clock.now_s += FIRST_S
        assert tier.get(BLOCK.key) is None
        clock.now_s += 2 * FIRST_S
        assert tier.put(BLOCK) == (BLOCK,)
    # The put found that the bucket was never listed, and asked nothing more.
    assert tier.counters == TierCounters(read_errors=3, skipped=1)


def test_no_request_is_made_until_the_rest_is_over_and_rests_grow(
    tmp_path: Path, s3_bucket: str, endpoint: Endpoint, clock: Clock
) -> None:
    tier = ObjectsTier(f"{s3_bucket}/{tmp_path.name}", 2**20, PATIENCE_S, clock=clock)
    assert tier.put(BLOCK) == ()
    endpoint.status = 503
    for rest, faults in ((1, 1), (2, 2), (4, 3)):
        assert tier.get(BLOCK.key) is None
        made = endpoint.num_requests
        clock.now_s += rest / 2
        for _ in range(50):
            assert tier.get(BLOCK.key) is None
        assert tier.put(make_block(1)) != ()
        tier.discard(make_key(1))
        assert endpoint.num_requests == made
        assert tier.counters == TierCounters(read_errors=faults, skipped=faults * 52)
        clock.now_s += rest / 2
    endpoint.status = None
    assert same(tier.get(BLOCK.key), BLOCK) and tier.num_bytes == ENTRY_BYTES


def test_a_bucket_that_did_not_answer_at_first_is_counted_once_it_does(
    tmp_path: Path, s3_bucket: str, endpoint: Endpoint, clock: Clock
) -> None:
    url = f"{s3_bucket}/{tmp_path.name}"
    before = ObjectsTier(url, 2**20)
    for key in range(2):
        assert before.put(make_block(key)) == ()
    endpoint.status = 503
    tier = ObjectsTier(url, 2 * ENTRY_BYTES, PATIENCE_S, clock=clock)
    endpoint.status = None
    clock.now_s += FIRST_S
    assert tier.put(make_block(2)) == ()
    assert tier.num_bytes == 2 * ENTRY_BYTES
    assert tier.counters == TierCounters(read_errors=1, evictions=1)


def test_what_is_denied_later_is_a_fault_without_a_rest(
    tmp_path: Path, s3_bucket: str, endpoint: Endpoint, clock: Clock
) -> None:
    tier = ObjectsTier(f"{s3_bucket}/{tmp_path.name}", 2**20, PATIENCE_S, clock=clock)
    assert tier.put(BLOCK) == ()
    endpoint.status = 403
    other = make_block(1)
    assert tier.put(other) == (other,) and tier.get(BLOCK.key) is None
    tier.discard(BLOCK.key)
    assert tier.counters == TierCounters(read_errors=1, write_errors=2)
    endpoint.status = None
    assert same(tier.get(BLOCK.key), BLOCK)


def test_a_block_that_could_not_be_written_leaves_no_former_one_to_answer_for_it(
    tmp_path: Path, s3_bucket: str, endpoint: Endpoint, clock: Clock
) -> None:
    tier = ObjectsTier(f"{s3_bucket}/{tmp_path.name}", 2**20, PATIENCE_S, clock=clock)
    assert tier.put(make_block(0, version=1)) == ()
    endpoint.status, endpoint.methods = 403, frozenset({"PUT"})
    latter = make_block(0, version=2)
    assert tier.put(latter) == (latter,)
    assert tier.get(latter.key) is None and tier.num_bytes == 0
    assert tier.counters == TierCounters(write_errors=1)


@pytest.mark.parametrize(
    ("status", "reason"), [(403, "permission denied"), (401, "permission denied"), (404, "there is no such bucket")]
)
def test_a_bucket_that_says_no_is_an_error_that_names_it(
    s3_bucket: str, endpoint: Endpoint, status: int, reason: str
) -> None:
    endpoint.status = status
    with pytest.raises(UnusableTier, match=f"url: '{s3_bucket}/x' cannot be used as a store: {reason}.*; allowed: "):
        ObjectsTier(f"{s3_bucket}/x", 2**20, PATIENCE_S)


def test_missing_credentials_are_an_error_though_nobody_answers(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(UnusableTier, match=r"no credentials in the environment: .*; allowed: "):
            ObjectsTier(s3_bucket, 2**20, PATIENCE_S)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s4://bucket", "unknown scheme 's4'"),
        ("bucket/folder", "unknown scheme 'bucket/folder'"),
        ("s3://", "Unable to recognise URL"),
        ("s3://user:secret@bucket/x", "credentials do not belong into it"),
        ("s3://user:sec/secret@bucket/x", "invalid port"),
        ("az://container/x?sig=secret", "Account must be specified"),
        ("file:///dev/null/x", "Not a directory"),
    ],
)
def test_a_url_that_names_no_store_is_an_error_that_tells_no_secret(url: str, reason: str) -> None:
    config = schema.Store(tiers=(schema.MemoryTier(), schema.ObjectsTier(url=url)))
    with pytest.raises(UnusableTier, match=rf"store\.tiers\[1\]\.url: .*{reason}") as raised:
        TieredStore.from_config(config)
    assert "secret" not in str(raised.value)


def test_a_job_opens_it_with_its_own_budget(tmp_path: Path) -> None:
    config = schema.ObjectsTier(url=tmp_path.as_uri(), max_bytes=ByteSize(3 * ENTRY_BYTES))
    tier = ObjectsTier.from_config(config, "far")
    assert (tier.name, tier.max_bytes) == ("far", 3 * ENTRY_BYTES)
    store = TieredStore.from_config(schema.Store(tiers=(config,)))
    store.put(BLOCK)
    store.flush()
    assert same(tier.get(BLOCK.key), BLOCK)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("abfss://container@account.dfs.core.windows.net/x", "abfss://container@account.dfs.core.windows.net/x"),
        ("GET http://me:pass@host:1/x in 3 ms", "GET http://host:1/x in 3 ms"),
        ("GET http://me:p@ss@host:1/x in 3 ms", "GET http://host:1/x in 3 ms"),
        ("GET https://host/x?sv=1&sig=abc in 3 ms", "GET https://host/x in 3 ms"),
    ],
)
def test_messages_lose_passwords_and_signatures(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_rests_double_up_to_a_minute_and_an_answer_ends_them(clock: Clock) -> None:
    cooloff = CoolOff(clock)
    rests = []
    for _ in range(8):
        assert not cooloff.remaining_s
        for _ in range(3):  # calls that fail together
            cooloff.no_answer()
        rests.append(cooloff.remaining_s)
        clock.now_s += rests[-1]
    assert rests == [FIRST_S, 2, 4, 8, 16, 32, LONGEST_S, LONGEST_S]
    cooloff.no_answer()
    cooloff.answered()
    assert not cooloff.remaining_s
    cooloff.no_answer()
    assert cooloff.remaining_s == FIRST_S
