"""Errors of a contract as the result of a task, and in what `polywire call` prints."""

from __future__ import annotations

import pytest

from polywire import App, Contract, FailedPrecondition, Message, NotFound, Retry, enqueue, task, testing
from polywire.cli.call import _described
from polywire.contract.details import ErrorInfo


class Unreadable(FailedPrecondition, message="{picture} is no picture but {kind}."):
    picture: str
    kind: str


class Unlisted(NotFound):
    picture: str


class Picture(Message):
    name: str


class Thumb(Message):
    width: int


class Images(Contract, package="taskerrors.v1", raises=(Unreadable,)):
    @task(retry=Retry(attempts=1))
    async def shrink(self, picture: Picture) -> Thumb:
        raise NotImplementedError


app = App("images")


@app.service
class ImageService(Images):
    async def shrink(self, picture: Picture) -> Thumb:
        if picture.name == "letter":
            raise Unreadable(picture="letter", kind="text")
        raise Unlisted("gone", picture=picture.name)


async def test_who_waits_for_a_result_gets_the_error_as_the_same_class() -> None:
    async with testing.system(app) as system:
        receipt = await enqueue(system.client(Images).shrink, Picture(name="letter"))
        with pytest.raises(Unreadable) as caught:
            await receipt.result(timeout=60)
    assert caught.value == Unreadable(picture="letter", kind="text")


async def test_an_error_that_the_contract_does_not_list_is_canonical() -> None:
    async with testing.system(app) as system:
        receipt = await enqueue(system.client(Images).shrink, Picture(name="hat"))
        with pytest.raises(NotFound) as caught:
            await receipt.result(timeout=60)
    assert (type(caught.value), caught.value.message, len(caught.value.details)) == (NotFound, "gone", 1)


def test_polywire_call_prints_the_fields() -> None:
    error = Unreadable(picture="letter", kind="text", details=[ErrorInfo(reason="A")])
    assert _described(error) == (
        "Error: failed_precondition: letter is no picture but text.\n"
        "  Unreadable(picture='letter', kind='text')\n"
        "  ErrorInfo(reason='A', domain='', metadata={})"
    )
