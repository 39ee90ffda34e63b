"""The goods: a catalogue made up from a seed, so that every fresh shop sells the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

CATALOGUE_SIZE = 1_200
FIRST_NUMBER = 100

_KINDS = {
    "Kitchen": ["Kettle", "Skillet", "Teapot", "Chopping Board", "Salad Bowl", "Coffee Grinder", "Bread Knife", "Jug"],
    "Office": ["Desk Lamp", "Notebook", "Pen Tray", "Bookend", "Desk Pad", "Letter Opener", "Wall Clock", "Bin"],
    "Garden": ["Watering Can", "Trowel", "Planter", "Lantern", "Bird House", "Hose Reel", "Bench", "Rake"],
    "Travel": ["Backpack", "Flask", "Wash Bag", "Luggage Tag", "Umbrella", "Neck Pillow", "Wallet", "Duffel"],
    "Home": ["Blanket", "Cushion", "Candle", "Mirror", "Vase", "Doormat", "Coat Hook", "Picture Frame"],
    "Toys": ["Puzzle", "Kite", "Marble Run", "Building Set", "Spinning Top", "Train", "Yo-Yo", "Drum"],
}
_MATERIALS = ["Oak", "Steel", "Linen", "Copper", "Felt", "Glass", "Bamboo", "Ceramic", "Cork", "Wool", "Brass", "Slate"]
_LOOKS = ["Plain", "Tall", "Folding", "Small", "Striped", "Heavy", "Light", "Round", "Classic", "Nordic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goods:
    number: int
    name: str
    category: str
    description: str
    price_cents: int
    units: int

    @property
    def product_id(self) -> str:
        return f"SKU-{self.number}"


def goods(size: int = CATALOGUE_SIZE, *, seed: int = 1) -> Iterator[Goods]:
    dice = random.Random(seed)
    for number in range(FIRST_NUMBER, FIRST_NUMBER + size):
        category = dice.choice(list(_KINDS))
        kind, material, look = dice.choice(_KINDS[category]), dice.choice(_MATERIALS), dice.choice(_LOOKS)
        yield Goods(
            number=number,
            name=f"{look} {material} {kind}",
            category=category,
            description=f"A {look.lower()} {kind.lower()} made of {material.lower()}.",
            price_cents=dice.randint(3, 120) * 100 + dice.choice([0, 50, 90, 99]),
            # A few are rare, so that customers run into each other.
            units=dice.randint(1, 5) if dice.random() < 0.05 else dice.randint(20, 200),
        )
