"""Pictures of the goods: photographs that are shrunk to thumbnails, which keeps a core busy for a while."""

from __future__ import annotations

import itertools
import math
import random
import struct
import zlib
from collections.abc import Iterator

from polywire import App, NotFound
from shop.backoffice import Images, PictureCount, Resize, Thumb
from shop.database import Database, open_database

app = App("images")

SIDE = 128
"""Pixels of a photograph, in both directions."""

Pixel = tuple[int, int, int]
Picture = list[list[Pixel]]


def create_tables(database: Database) -> None:
    database.run("""
        CREATE TABLE thumbs (
            product_id TEXT NOT NULL, width INTEGER NOT NULL, png BLOB NOT NULL, PRIMARY KEY (product_id, width)
        )""")


@app.resource
def database() -> Iterator[Database]:
    with open_database("images", create_tables) as database:
        yield database


@app.service
class ImageService(Images):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def resize(self, request: Resize) -> Thumb:
        """Doing it twice makes the same picture."""
        png = png_of(shrunk(photograph(request.product_id), request.width))
        self._database.run("INSERT OR REPLACE INTO thumbs VALUES (?, ?, ?)", request.product_id, request.width, png)
        return Thumb(product_id=request.product_id, width=request.width, png=png)

    async def find_thumb(self, query: Resize) -> Thumb:
        row = self._database.one(
            "SELECT png FROM thumbs WHERE product_id = ? AND width = ?", query.product_id, query.width
        )
        if row is None:
            raise NotFound(f"There is no picture of {query.product_id!r} that is {query.width} pixels wide (yet).")
        return Thumb(product_id=query.product_id, width=query.width, png=row["png"])

    async def count_pictures(self) -> PictureCount:
        return PictureCount(made=self._database.value("SELECT count(*) FROM thumbs"))


def photograph(product_id: str) -> Picture:
    """The product in its colours, in front of a wall: the same each time."""
    dice = random.Random(product_id)
    front, wall = _colour(dice), _colour(dice)
    petals, middle = dice.randint(3, 9), SIDE / 2

    def pixel(x: int, y: int) -> Pixel:
        distance = math.hypot(x - middle, y - middle)
        edge = SIDE * (0.3 + 0.12 * math.sin(petals * math.atan2(y - middle, x - middle)))
        light = 0.6 + 0.4 * y / SIDE
        red, green, blue = front if distance < edge else wall
        return int(red * light), int(green * light), int(blue * light)

    return [[pixel(x, y) for x in range(SIDE)] for y in range(SIDE)]


def _colour(dice: random.Random) -> Pixel:
    return dice.randint(40, 255), dice.randint(40, 255), dice.randint(40, 255)


def shrunk(picture: Picture, width: int) -> Picture:
    """Each pixel is the mean of those that it stands for."""
    edges = [number * len(picture) // width for number in range(width + 1)]

    def mean(left: int, right: int, top: int, bottom: int) -> Pixel:
        pixels = [pixel for row in picture[top:bottom] for pixel in row[left:right]]
        red, green, blue = (sum(channel) // len(pixels) for channel in zip(*pixels, strict=True))
        return red, green, blue

    spans = list(itertools.pairwise(edges))
    return [[mean(left, right, top, bottom) for left, right in spans] for top, bottom in spans]


def png_of(picture: Picture) -> bytes:
    """The picture as a PNG file: its signature, what it is, its rows, its end."""
    rows = b"".join(b"\0" + bytes(value for pixel in row for value in pixel) for row in picture)
    header = struct.pack(">IIBBBBB", len(picture[0]), len(picture), 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
