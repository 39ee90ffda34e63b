"""The suite of event logs on a real Kafka: all of it by the new protocol of groups, what a protocol decides by both."""

from __future__ import annotations

import pytest
from kafka_support import KafkaSuite, only

from polywire.bus.backend import kafka_lane

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _suspects_take_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_lane, "SUSPECT", 0.2)


class TestKafka(KafkaSuite):
    @pytest.fixture(autouse=True)
    def _address(self, kafka_url: str) -> None:
        type(self).address = kafka_url


@only(
    "a_group_goes_on_where_it_was",
    "a_member_that_leaves_leaves_its_partitions_to_the_others",
    "a_running_group_is_told_where_to_go_on_or_the_seek_is_refused",
    "a_seek_of_one_partition_raises_the_generation_of_all",
    "an_event_that_kills_its_worker_is_a_suspect",
    "done_of_an_older_epoch_is_ignored",
    "revoking_is_awaited_before_a_partition_goes_to_another_member",
    "the_generation_outlives_members_and_connections",
    "two_members_share_the_partitions",
)
class TestKafkaByTheClassicProtocol(KafkaSuite):
    options = "group_protocol=classic&session_timeout=2"

    @pytest.fixture(autouse=True)
    def _address(self, kafka_url: str) -> None:
        type(self).address = kafka_url
