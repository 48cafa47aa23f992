from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.errors import SettingError
from service.settings import VARIABLES, ListenAddress, NamedPath, read_settings

BUNDLES = {"PHOSPHENE_BUNDLES": "scenes=/srv/b1,photos=/srv/b2"}


def test_defaults_are_loopback_and_bounded():
    read = read_settings(BUNDLES, cpu_count=2)
    assert read.artefacts.bundles == (
        NamedPath(name="scenes", path=Path("/srv/b1")),
        NamedPath(name="photos", path=Path("/srv/b2")),
    )
    assert str(read.network.listen) == "127.0.0.1:50051"
    assert str(read.network.metrics_listen) == "127.0.0.1:9464"
    assert read.engine.thread_count is None
    assert read.engine.decode_worker_count == 2
    assert read.image.limit_bytes == 16 * 2**20


def test_every_variable_is_read():
    values = {
        "PHOSPHENE_BUNDLES": "a=x",
        "PHOSPHENE_INDEXES": "p=y,q=z",
        "PHOSPHENE_LISTEN": "0.0.0.0:0",
        "PHOSPHENE_METRICS_LISTEN": "[::1]:7",
        "PHOSPHENE_DRAIN_S": "1.5",
        "PHOSPHENE_DEVICE": "cuda:1",
        "PHOSPHENE_ENGINE_THREADS": "3",
        "PHOSPHENE_BATCH_IMAGES": "4",
        "PHOSPHENE_QUEUE_IMAGES": "5",
        "PHOSPHENE_DECODE_WORKERS": "6",
        "PHOSPHENE_IMAGE_LIMIT_BYTES": "2048",
        "PHOSPHENE_IMAGE_LIMIT_PIXELS": "99",
        "PHOSPHENE_LOG_LEVEL": "debug",
    }
    assert values.keys() == VARIABLES.keys()
    read = read_settings(values)
    assert [entry.name for entry in read.artefacts.indexes] == ["p", "q"]
    assert read.network.listen == ListenAddress(host="0.0.0.0", port=0)
    assert read.network.metrics_listen == ListenAddress(host="::1", port=7)
    assert str(read.network.metrics_listen) == "[::1]:7"
    assert read.network.drain_s == 1.5
    assert (read.engine.device, read.engine.thread_count, read.engine.batch_images) == ("cuda:1", 3, 4)
    assert (read.engine.queue_images, read.engine.decode_worker_count) == (5, 6)
    assert (read.image.limit_bytes, read.image.limit_pixels, read.log_level) == (2048, 99, "debug")


@pytest.mark.parametrize(
    ("variable", "value", "limit"),
    [
        ("PHOSPHENE_BUNDLES", "scenes", "name=folder"),
        ("PHOSPHENE_BUNDLES", "Scenes=/x", "name=folder"),
        ("PHOSPHENE_BUNDLES", "a=/x,a=/y", "twice"),
        ("PHOSPHENE_BUNDLES", "", "is not set"),
        ("PHOSPHENE_INDEXES", "a=", "name=folder"),
        ("PHOSPHENE_LISTEN", "50051", "host:port"),
        ("PHOSPHENE_LISTEN", "localhost:70000", "65535"),
        ("PHOSPHENE_LISTEN", ":1", "host:port"),
        ("PHOSPHENE_METRICS_LISTEN", "localhost:x", "host:port"),
        ("PHOSPHENE_DRAIN_S", "601", "0 to 600"),
        ("PHOSPHENE_DRAIN_S", "nan", "0 to 600"),
        ("PHOSPHENE_DEVICE", "tpu", "cuda:N"),
        ("PHOSPHENE_ENGINE_THREADS", "0", "1 to 256"),
        ("PHOSPHENE_BATCH_IMAGES", "-1", "1 to 1024"),
        ("PHOSPHENE_QUEUE_IMAGES", "many", "1 to 65536"),
        ("PHOSPHENE_DECODE_WORKERS", "1.5", "1 to 256"),
        ("PHOSPHENE_IMAGE_LIMIT_BYTES", "12", "1024 to 268435456"),
        ("PHOSPHENE_IMAGE_LIMIT_PIXELS", "0", "1 to 1000000000"),
        ("PHOSPHENE_LOG_LEVEL", "loud", "debug, info"),
    ],
)
def test_a_bad_value_is_refused_by_variable_value_and_limit(variable, value, limit):
    with pytest.raises(SettingError) as caught:
        read_settings({**BUNDLES, variable: value})
    assert variable in str(caught.value)
    assert limit in str(caught.value)
    assert value.split(",")[-1] in str(caught.value)


def test_unknown_variables_are_refused_and_foreign_ones_are_not():
    with pytest.raises(SettingError, match="PHOSPHENE_BATCH_IMAGE is not a setting"):
        read_settings({**BUNDLES, "PHOSPHENE_BATCH_IMAGE": "3"})
    read_settings({**BUNDLES, "PATH": "/bin", "phosphene_x": "1"})


def test_all_faults_come_in_one_error():
    with pytest.raises(SettingError) as caught:
        read_settings({"PHOSPHENE_DEVICE": "x", "PHOSPHENE_BATCH_IMAGES": "0", "PHOSPHENE_NEW": "1"})
    for name in ("PHOSPHENE_BUNDLES", "PHOSPHENE_DEVICE", "PHOSPHENE_BATCH_IMAGES", "PHOSPHENE_NEW"):
        assert name in str(caught.value)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(VARIABLES)), st.text(max_size=20)))
def test_any_text_gives_settings_within_bounds_or_a_setting_error(values):
    try:
        read = read_settings(values)
    except SettingError:
        return
    assert 1 <= read.engine.batch_images <= 1024
    assert 1 <= read.engine.queue_images <= 65536
    assert 0 <= read.network.listen.port <= 65535
