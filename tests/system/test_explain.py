"""`polywire explain`: whole outputs."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from up_support import tiny

from polywire.cli import main

SYSTEM = """\
[system]
name = "tiny"

[services.orders]
app = "tiny.orders:app"

[services.inventory]
app = "tiny.inventory:app"

[services.inventory.calls]
bulkhead = { limit = 64 }
retries = 1
ejection = { enabled = false }

[services.inventory.calls."tiny.v1.Inventory/check_stock"]
timeout = 0.5
bulkhead = { queue = 8 }
hedge = { after = 0.05 }

[calls]
breaker = { open_time = 5 }
bulkhead = { limit = 100, order = "lifo" }
budget_share = 0.1
"""
METHOD = 'services.inventory.calls."tiny.v1.Inventory/check_stock"'
CHECK_STOCK = f"""\
tiny.v1.Inventory/CheckStock  [inventory]
Idempotent: sent again wherever that may help.

fallback           off         default
deadline
  timeout          0.5 s       method   polywire.toml:16: {METHOD}.timeout
  attempt_timeout  none        default
  wait_for_ready   false       default
retry
  attempts         2           service  polywire.toml:12: services.inventory.calls.retries
  base             0.05 s      default
  cap              2 s         default
  budget_share     0.1         system   polywire.toml:23: calls.budget_share
  budget_minimum   3           default
hedge              on
  after            0.05 s      method   polywire.toml:18: {METHOD}.hedge.after
  copies           1           default
  at_least         0.005 s     default
breaker            on
  window           10 s        default
  window_calls     none        default
  minimum_calls    20          default
  failure_rate     0.5         default
  slow_after       none        default
  slow_rate        0.8         default
  trials           3           default
  trial_time       30 s        default
  open_time        5 s         system   polywire.toml:21: calls.breaker.open_time
  growth           2           default
  max_open_time    5 s         default
  jitter           0.2         default
bulkhead           on
  limit            64          service  polywire.toml:11: services.inventory.calls.bulkhead.limit
  queue            8           method   polywire.toml:17: {METHOD}.bulkhead.queue
  order            lifo        system   polywire.toml:22: calls.bulkhead.order
ejection           off         service  polywire.toml:13: services.inventory.calls.ejection.enabled
balance            on
  by               least_busy  default
  key              none        default
  load             1.25        default
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tiny(tmp_path, SYSTEM))
    return tmp_path


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Status, output and complaints of `polywire explain`."""
    with pytest.raises(SystemExit) as ended:
        main(["explain", *arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("spelled", ["tiny.v1.Inventory/check_stock", "tiny.v1.Inventory/CheckStock"])
def test_every_value_is_printed_with_where_it_comes_from(spelled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(capsys, spelled) == (0, CHECK_STOCK, "")


@pytest.mark.usefixtures("here")
def test_a_stream_says_what_never_applies_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    _, said, _ = explained(capsys, "tiny.v1.Inventory/watch")
    lines = said.splitlines()
    assert (
        lines[:9]
        == textwrap.dedent("""\
        tiny.v1.Inventory/Watch  [inventory]
        Not idempotent: sent again only where it certainly did not arrive, or was turned away.

        fallback           never                nothing can stand in for a stream
        deadline
          timeout          none        default
          attempt_timeout  none        default
          wait_for_ready   false       default
        retry""").splitlines()
    )
    assert "hedge              never                the method is not idempotent" in lines
    assert "bulkhead           off         default" in lines


@pytest.mark.usefixtures("here")
def test_a_variable_is_named_as_the_place(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYWIRE__CALLS__BREAKER__TRIALS", "1")
    _, said, _ = explained(capsys, "tiny.v1.Inventory/check_stock")
    assert (
        "  trials           1           system   POLYWIRE__CALLS__BREAKER__TRIALS: calls.breaker.trials"
        in said.splitlines()
    )


@pytest.mark.usefixtures("here")
def test_a_method_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(capsys, "tiny.v1.Inventory/chek_stock") == (
        1,
        "",
        "Error: tiny.v1.Inventory has no method 'chek_stock'. Did you mean 'check_stock'? It has: check_stock, crash, "
        "watch, add_up, echo.\n",
    )
