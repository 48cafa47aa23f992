from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phosphene.errors import SettingError
from service.settings import ListenAddress, NamedPath, read_settings, without_secret
from service.variables import VARIABLES, describe, to_markdown

BUNDLES = {"PHOSPHENE_BUNDLES": "scenes=/srv/b1,photos=/srv/b2"}
DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_defaults_are_loopback_and_bounded():
    read = read_settings(BUNDLES, cpu_count=2)
    assert read.artefacts.bundles == (
        NamedPath(name="scenes", path=Path("/srv/b1")),
        NamedPath(name="photos", path=Path("/srv/b2")),
    )
    assert str(read.network.listen) == "127.0.0.1:50051"
    assert str(read.network.metrics_listen) == "127.0.0.1:9464"
    assert read.network.admin_listen is None
    assert read.engine.thread_count is None
    assert read.queue.decode_worker_count == 2
    assert read.image.limit_bytes == 16 * 2**20


def test_every_variable_is_read():
    values = {
        "PHOSPHENE_BUNDLES": "a=x",
        "PHOSPHENE_INDEXES": "p=y,q=z",
        "PHOSPHENE_TOMBSTONES": "q=d",
        "PHOSPHENE_FLAGS": "p=f",
        "PHOSPHENE_NAMES": "p=n",
        "PHOSPHENE_CURRENT": "",
        "PHOSPHENE_INDEX_DEVICE": "cuda:2",
        "PHOSPHENE_LISTEN": "127.0.0.2:0",
        "PHOSPHENE_METRICS_LISTEN": "[::1]:7",
        "PHOSPHENE_ADMIN_LISTEN": "localhost:8",
        "PHOSPHENE_CONNECTION_STREAMS": "9",
        "PHOSPHENE_CONNECTION_AGE_S": "10",
        "PHOSPHENE_DRAIN_S": "1.5",
        "PHOSPHENE_TLS_CERTIFICATE": "/c",
        "PHOSPHENE_TLS_KEY": "/k",
        "PHOSPHENE_TLS_CLIENT_CA": "/a",
        "PHOSPHENE_ALLOW_PLAINTEXT": "Yes",
        "PHOSPHENE_TOKENS_FILE": "/t",
        "PHOSPHENE_RATE_PER_S": "2.5",
        "PHOSPHENE_RATE_BURST": "11",
        "PHOSPHENE_DEVICE": "cuda:1",
        "PHOSPHENE_ENGINE": "onnxruntime",
        "PHOSPHENE_ENGINES": "a=/e",
        "PHOSPHENE_ENGINE_THREADS": "3",
        "PHOSPHENE_BATCH_IMAGES": "4",
        "PHOSPHENE_QUEUE_IMAGES": "5",
        "PHOSPHENE_QUEUE_BYTES": "2000000",
        "PHOSPHENE_QUEUE_PIXELS": "3000000",
        "PHOSPHENE_UPLOAD_IDLE_S": "7.5",
        "PHOSPHENE_BULK_SHARE": "0.5",
        "PHOSPHENE_STALL_S": "12",
        "PHOSPHENE_DECODE_WORKERS": "6",
        "PHOSPHENE_DECODE_LIMIT_S": "13",
        "PHOSPHENE_IMAGE_LIMIT_BYTES": "2048",
        "PHOSPHENE_IMAGE_LIMIT_PIXELS": "99",
        "PHOSPHENE_REDIS_URL": "redis://user:word@host:1/2",
        "PHOSPHENE_CACHE_BYTES": "0",
        "PHOSPHENE_CACHE_TTL_S": "14",
        "PHOSPHENE_TRACES_ENDPOINT": "http://host:4317",
        "PHOSPHENE_LOG_LEVEL": "debug",
        "PHOSPHENE_QDRANT_URL": "https://user:word@host:6333",
        "PHOSPHENE_QDRANT_COLLECTION": "Scenes-1",
        "PHOSPHENE_QDRANT_KEY_FILE": "/q",
        "PHOSPHENE_QDRANT_TIMEOUT_S": "15",
    }
    assert values.keys() == VARIABLES.keys()
    read = read_settings(values)
    assert [entry.name for entry in read.artefacts.indexes] == ["p", "q"]
    assert [entry.path for entry in read.artefacts.engines] == [Path("/e")]
    assert read.artefacts.index_device == "cuda:2"
    assert read.network.listen == ListenAddress(host="127.0.0.2", port=0)
    assert str(read.network.metrics_listen) == "[::1]:7"
    assert str(read.network.admin_listen) == "localhost:8"
    assert (read.network.connection_streams, read.network.connection_age_s, read.network.drain_s) == (9, 10, 1.5)
    security = read.security
    assert (security.certificate, security.key, security.client_ca) == (Path("/c"), Path("/k"), Path("/a"))
    assert (security.tokens, security.rate_per_s, security.rate_burst) == (Path("/t"), 2.5, 11)
    assert (read.engine.device, read.engine.engine, read.engine.thread_count) == ("cuda:1", "onnxruntime", 3)
    assert (read.engine.batch_images, read.engine.stall_s) == (4, 12)
    queue = read.queue
    assert (queue.images, queue.image_bytes, queue.image_pixels, queue.bulk_share) == (5, 2_000_000, 3_000_000, 0.5)
    assert (queue.decode_worker_count, queue.decode_limit_s, queue.upload_idle_s) == (6, 13, 7.5)
    assert (read.image.limit_bytes, read.image.limit_pixels) == (2048, 99)
    assert (read.cache.redis_url, read.cache.limit_bytes, read.cache.ttl_s) == ("redis://user:word@host:1/2", 0, 14)
    assert (read.traces_endpoint, read.log_level) == ("http://host:4317", "debug")
    qdrant = read.qdrant
    assert (qdrant.url, qdrant.collection) == ("https://user:word@host:6333", "Scenes-1")
    assert (qdrant.key_file, qdrant.timeout_s) == (Path("/q"), 15)
    assert "word" not in str(read.to_log())


@pytest.mark.parametrize(
    ("variable", "value", "limit"),
    [
        ("PHOSPHENE_BUNDLES", "scenes", "name=folder"),
        ("PHOSPHENE_BUNDLES", "Scenes=/x", "name=folder"),
        ("PHOSPHENE_BUNDLES", "a=/x,a=/y", "twice"),
        ("PHOSPHENE_BUNDLES", "", "is not set"),
        ("PHOSPHENE_CURRENT", "/srv/CURRENT", "unset one side"),
        ("PHOSPHENE_QDRANT_URL", "redis://host", "http or https"),
        ("PHOSPHENE_QDRANT_URL", "http://host:6333", "go together"),
        ("PHOSPHENE_QDRANT_COLLECTION", "a/b", "begin with a letter or digit"),
        ("PHOSPHENE_QDRANT_COLLECTION", "scenes", "go together"),
        ("PHOSPHENE_QDRANT_KEY_FILE", "/k", "go together"),
        ("PHOSPHENE_INDEXES", "a=", "name=folder"),
        ("PHOSPHENE_TOMBSTONES", "a=d", "PHOSPHENE_INDEXES does not"),
        ("PHOSPHENE_LISTEN", "50051", "host:port"),
        ("PHOSPHENE_LISTEN", "localhost:70000", "65535"),
        ("PHOSPHENE_LISTEN", ":1", "host:port"),
        ("PHOSPHENE_LISTEN", "0.0.0.0:1", "PHOSPHENE_ALLOW_PLAINTEXT=yes"),
        ("PHOSPHENE_ADMIN_LISTEN", "[::]:1", "PHOSPHENE_ALLOW_PLAINTEXT=yes"),
        ("PHOSPHENE_METRICS_LISTEN", "localhost:x", "host:port"),
        ("PHOSPHENE_TLS_KEY", "/k", "set both or neither"),
        ("PHOSPHENE_TLS_CLIENT_CA", "/k", "PHOSPHENE_TLS_CERTIFICATE"),
        ("PHOSPHENE_DRAIN_S", "601", "0 to 600"),
        ("PHOSPHENE_DRAIN_S", "nan", "0 to 600"),
        ("PHOSPHENE_DEVICE", "tpu", "cuda:N"),
        ("PHOSPHENE_ENGINE", "tensorrt", "torch, onnxruntime"),
        ("PHOSPHENE_ENGINE", "onnxruntime", "PHOSPHENE_ENGINES is not set"),
        ("PHOSPHENE_ENGINE_THREADS", "0", "1 to 256"),
        ("PHOSPHENE_BATCH_IMAGES", "-1", "1 to 1024"),
        ("PHOSPHENE_QUEUE_IMAGES", "many", "1 to 65536"),
        ("PHOSPHENE_BULK_SHARE", "1", "0 to 0.9"),
        ("PHOSPHENE_DECODE_WORKERS", "1.5", "1 to 256"),
        ("PHOSPHENE_IMAGE_LIMIT_BYTES", "12", "1024 to 268435456"),
        ("PHOSPHENE_IMAGE_LIMIT_PIXELS", "0", "1 to 1000000000"),
        ("PHOSPHENE_REDIS_URL", "http://host", "redis or rediss or unix"),
        ("PHOSPHENE_LOG_LEVEL", "loud", "debug, info"),
    ],
)
def test_a_bad_value_is_refused_by_variable_value_and_limit(variable, value, limit):
    with pytest.raises(SettingError) as caught:
        read_settings({**BUNDLES, variable: value})
    assert variable in str(caught.value)
    assert limit in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]", "[0:0::1]"])
def test_this_machine_alone_needs_no_tls(host):
    assert read_settings({**BUNDLES, "PHOSPHENE_LISTEN": f"{host}:50055"}).network.listen.is_loopback


@pytest.mark.parametrize(
    "host",
    ["127.evil.example", "127.0.0.1.example.org", "127.", "localhost.example.org", "0.0.0.0", "[::]", "10.0.0.1"],
)
def test_what_others_may_reach_needs_tls(host):
    """A name that begins like an address of loopback is still a name, and may be anybody's."""
    with pytest.raises(SettingError, match="PHOSPHENE_LISTEN reach.* beyond this machine without TLS"):
        read_settings({**BUNDLES, "PHOSPHENE_LISTEN": f"{host}:50055"})


def test_unknown_variables_are_refused_and_foreign_ones_are_not():
    with pytest.raises(SettingError, match="PHOSPHENE_BATCH_IMAGE is not a setting"):
        read_settings({**BUNDLES, "PHOSPHENE_BATCH_IMAGE": "3"})
    read_settings({**BUNDLES, "PATH": "/bin", "phosphene_x": "1"})


def test_all_faults_come_in_one_error():
    with pytest.raises(SettingError) as caught:
        read_settings({"PHOSPHENE_DEVICE": "x", "PHOSPHENE_BATCH_IMAGES": "0", "PHOSPHENE_NEW": "1"})
    for name in ("PHOSPHENE_DEVICE", "PHOSPHENE_BATCH_IMAGES", "PHOSPHENE_NEW"):
        assert name in str(caught.value)


@given(st.dictionaries(st.sampled_from(sorted(VARIABLES)), st.text(max_size=20)))
def test_any_text_gives_settings_within_bounds_or_a_setting_error(values):
    try:
        read = read_settings(values)
    except SettingError:
        return
    assert 1 <= read.engine.batch_images <= 1024
    assert 1 <= read.queue.images <= 65536
    assert 0 <= read.network.listen.port <= 65535


def test_the_log_holds_no_secret():
    read = read_settings({**BUNDLES, "PHOSPHENE_REDIS_URL": "rediss://user:hunter2@host:1/0"})
    assert "hunter2" not in str(read.to_log())
    assert read.to_log()["cache"]["redis_url"] == "rediss://host:1/0"
    assert without_secret("redis://host/0") == "redis://host/0"


def test_the_document_says_what_is_read():
    assert DOCUMENT.read_text(encoding="utf-8") == to_markdown(), (
        "run: python -m service configuration > docs/configuration.md"
    )
    for name in VARIABLES:
        assert describe(name)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:secret@host:6379/0", "redis://host:6379/0"),
        ("redis://:se@cret@host/0", "redis://host/0"),
        ("redis://host/0?password=secret", "redis://host/0"),
        ("unix://:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("https://user@collector:4317", "https://collector:4317"),
        ("redis://:sec/ret@host/0", "..."),
        ("redis://:sec?ret@host/0", "..."),
        ("redis://host/0?password=sec@ret", "..."),
    ],
)
def test_a_url_is_shown_without_what_may_be_a_secret(url, shown):
    assert without_secret(url) == shown


@pytest.mark.parametrize("url", ["http://:secret@host", "redis://:secret word@host", "redis:/:secret@host", "secret"])
def test_a_refused_url_is_not_quoted_with_what_may_be_a_secret(url):
    with pytest.raises(SettingError, match="PHOSPHENE_REDIS_URL is '.*'; it must be a URL") as caught:
        read_settings({**BUNDLES, "PHOSPHENE_REDIS_URL": url})
    assert "secret" not in str(caught.value)
